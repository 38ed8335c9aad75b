"""Tables of what quantizers cost."""

import pytest

from reports.costs import cost_table, cost_text, peer_table
from reports.summary import summary


@pytest.fixture
def make_cost(make_record):
    """A record of a quantizer that took so many seconds and bytes."""

    def make(case, seconds, peak_bytes=50_000_000, float_bytes=100_000_000):
        cost = {
            "seconds": seconds,
            "elapsed_seconds": 2 * seconds,
            "peak_bytes": peak_bytes,
            "float_bytes": float_bytes,
        }
        return {**make_record(case, kind="quantize"), "cost": {**cost, "cached": False}}

    return make


@pytest.fixture
def make_peer(make_record):
    """A record of a peer with so many seconds and error; ours are (seconds, error) by method."""

    def make(case, seconds, error, answer, **ours):
        record = make_record(case, kind="peer", **{"fidelity.error": error, "cost.seconds": seconds})
        tried = {name: {"seconds": own[0], "error": own[1]} for name, own in ours.items()}
        ratio = seconds / ours[answer][0]
        return {**record, "peer": {"library": "rival 1.2", "ours": tried, "answer": answer, "ratio": ratio}}

    return make


def rows(drawn):
    lines = drawn.splitlines()
    return [line.split() for line in lines[2 : lines.index(next(line for line in lines if line.startswith("s: ")))]]


def test_a_models_quantizers_stand_together_the_quickest_first(make_cost):
    records = [
        make_cost("minilm-gptq-int4-torch", 20.0, 630_000_000, 90_000_000),
        make_cost("digits-rtn-int4-torch", 0.01),
        make_cost("minilm-rtn-int4-torch", 0.125),
    ]
    assert rows(cost_table(records)) == [
        ["digits-rtn-int4-torch", "0.01", "0.02", "50", "0.5×"],
        ["minilm-rtn-int4-torch", "0.125", "0.25", "50", "0.5×"],
        ["minilm-gptq-int4-torch", "20", "40", "630", "7.0×"],
    ]


def test_large_multiples_have_no_decimals(make_cost):
    assert cost_text(make_cost("digits-gptq-int4-torch", 0.25, 41_000_000, 250_000)) == (
        "0.25 s, peak 41 MB, 164× the float model"
    )


def test_a_peer_stands_beside_what_answers_it(make_peer):
    ours = {"rtn": (0.1, 0.315), "gptq": (10.0, 0.13)}
    records = [
        make_peer("minilm-rival_gptq-int4_g128-torch", 30.0, 0.188, "gptq", **ours),
        make_peer("minilm-rival-int4_g128-torch", 1.5, 0.31, "gptq", **ours),
        make_peer("minilm-better-int4_g128-torch", 5.0, 0.1, "gptq", **ours),
    ]
    assert rows(peer_table(records)) == [
        ["better", "int4_g128", "5", ".1000", "gptq", "!", "10", ".1300", "0.5×"],
        ["rival", "int4_g128", "1.5", ".3100", "gptq", "10", ".1300", "0.15×"],
        ["rival_gptq", "int4_g128", "30", ".1880", "gptq", "10", ".1300", "3×"],
    ]
    assert "All of ours, int4_g128: gptq 10 s .1300, rtn 0.1 s .3150." in peer_table(records)
    assert "rival 1.2" in peer_table(records)
    assert cost_text(records[0]) == "30 s, error .1880; gptq 10 s, .1300"


def test_tables_fit_100_columns(make_cost, make_peer):
    drawn = cost_table([make_cost("linear_4096-smoothquant-int4_g128-torch", 12345.678)])
    peers = [
        make_peer("minilm-neural_compressor_gptq-int4_g128-torch", 30.0, 0.188, "smoothquant", smoothquant=(9, 0.1))
    ]
    drawn += "\n" + peer_table(peers)
    table = [line for line in drawn.splitlines() if not line.endswith(".")]
    assert max(map(len, table)) <= 100


def test_a_run_of_several_kinds_has_a_table_for_each(make_record, make_cost, make_peer):
    peer = make_peer("minilm-rival-int4_g128-torch", 1.5, 0.31, "rtn", rtn=(0.1, 0.3))
    parts = summary([make_cost("digits-rtn-int4-torch", 0.01), peer, make_record()]).split("\n\n")
    assert [part.split()[0] for part in parts] == ["case", "minilm:", "quantizer", "peer"]


def test_a_run_of_one_kind_has_one_table(make_record, make_cost):
    assert summary([make_record()]).count("\n\n") == 1
    assert summary([make_cost("digits-rtn-int4-torch", 0.01)]).startswith("quantizer")
    assert summary([]).startswith("No case was measured.")


def test_markdown_lists_the_notes(make_cost):
    drawn = cost_table([make_cost("digits-rtn-int4-torch", 0.01)], "github")
    assert drawn.startswith("| quantizer")
    assert "\n\n- s: processor time" in drawn
