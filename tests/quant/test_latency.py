import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import quant
from quant.latency import (
    ESTIMATED,
    Latency,
    assembled,
    crossed,
    estimated,
    fitted,
    fitted_conversions,
    load,
    units,
)


@pytest.fixture(scope="module")
def transformer(transformer_graph, transformer_inputs):
    return quant.quantize(transformer_graph, "static_plain", "int8", [(transformer_inputs,)])


@pytest.fixture(scope="module")
def residual(residual_graph):
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return quant.quantize(residual_graph, "static_plain", "int8", [(images,)])


def made(graph, **changes):
    weights = ("attention.query.weight", "up.weight")
    seconds = np.array([[1e-3, 4e-3], [2e-3, 7e-3]])
    edge = ("attention.query.weight", "up.weight", 5e-4)
    latency = Latency(
        "onnxruntime", {"batch": "8"}, weights, ("int8", "fp32"), seconds, (edge,), 1e-2, graph.weights_sha256
    )
    return replace(latency, **changes)


def test_what_is_saved_is_read(transformer_graph, tmp_path):
    latency = made(transformer_graph)
    latency.save(tmp_path / "latency.json")
    read = load(tmp_path / "latency.json", transformer_graph)
    np.testing.assert_array_equal(read.seconds, latency.seconds)
    assert {**vars(read), "seconds": 0} == {**vars(latency), "seconds": 0}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"rest"', '"west"'),
        lambda text: text.replace("0.004", "NaN"),
        lambda text: text.replace("0.004", "-0.004"),
        lambda text: text.replace("0.001,", "", 1),
        lambda text: text.replace('"up.weight"', '"down.weight"', 1),
        lambda text: text.replace("0.0005", "null"),
    ],
    ids=["cut", "list", "no rest", "nan", "negative", "short", "stranger", "null"],
)
def test_a_damaged_file_is_named(transformer_graph, tmp_path, damage):
    path = tmp_path / "latency.json"
    made(transformer_graph).save(path)
    whole = path.read_text()
    path.write_text(damage(whole))
    assert path.read_text() != whole
    with pytest.raises(ValueError, match=r"latency\.json holds no readable latency model .*: measure it again"):
        load(path, transformer_graph)


def test_a_missing_file_and_one_of_other_weights_are_named(transformer_graph, tied_graph, tmp_path):
    with pytest.raises(ValueError, match="no readable latency model"):
        load(tmp_path / "none.json", transformer_graph)
    made(transformer_graph).save(tmp_path / "latency.json")
    with pytest.raises(ValueError, match="other weights"):
        load(tmp_path / "latency.json", tied_graph)


def test_a_cost_table_has_the_order_that_is_asked_for(transformer_graph):
    latency = made(transformer_graph)
    weights = ["up.weight", "attention.query.weight"]
    np.testing.assert_array_equal(latency.of(weights, ["fp32", "int8"]), [[7e-3, 2e-3], [4e-3, 1e-3]])
    (conversion,) = latency.between(weights)
    assert (conversion.first, conversion.second, conversion.cost) == (1, 0, 5e-4)
    assert latency.between(["up.weight"]) == ()


@pytest.mark.parametrize(("weights", "formats"), [(["down.weight"], ["int8"]), (["up.weight"], ["int4"])])
def test_what_was_not_measured_is_named(transformer_graph, weights, formats):
    with pytest.raises(ValueError, match=r"'(down\.weight|int4)': measure it as well"):
        made(transformer_graph).of(weights, formats)


def test_fitted_times_add_up_to_those_of_the_models():
    generator = np.random.default_rng(0)
    for _ in range(20):
        seconds, whole = generator.uniform(0.1, 1, (7, 3)), generator.uniform(3, 9, 3)
        factors, rest = fitted(seconds.sum(0), whole)
        np.testing.assert_allclose((seconds * factors).sum(0) + rest, whole)
        assert rest >= 0
        assert (factors > 0).all()
        assert rest == 0 or factors.min() == pytest.approx(1)


def test_conversions_are_fitted_as_by_nonnegative_least_squares():
    optimize, generator = pytest.importorskip("scipy.optimize"), np.random.default_rng(0)
    for planted in ((3, 0.2), (0, 0.4), (2, 0), (0, 0), (-1, 0.3), (4, -0.2), (-1, -1)):
        for _ in range(10):
            alone, shares = generator.uniform(0, 1, 6), generator.uniform(0, 1, (4, 6))
            columns = np.stack([shares @ alone, shares.sum(1)], 1)
            beyond = columns @ planted + generator.normal(0, 0.05, 4)
            multiple, each = optimize.nnls(columns, beyond)[0]
            np.testing.assert_allclose(fitted_conversions(alone, shares, beyond), multiple * alone + each, atol=1e-9)


def test_mixtures_that_show_nothing_leave_conversions_free():
    assert not fitted_conversions(np.zeros(3), np.zeros((2, 3)), np.ones(2)).any()
    assert fitted_conversions(np.zeros(3), np.ones((2, 3)), np.full(2, 0.6)) == pytest.approx([0.2] * 3)


def test_a_conversion_is_crossed_where_makers_and_readers_differ(residual):
    found = units(residual)

    def shares(*wide):
        return {unit.names[0]: share for unit, share in zip(found, crossed(found, wide), strict=True) if share}

    assert shares() == shares(*(name for unit in found for name in unit.names)) == {}
    assert shares("stem.0.weight") == {"branch.0.weight": 1, "depthwise.weight": 0.5}
    assert shares("head.weight", "hidden.weight") == {"hidden.weight": 1}


def test_operators_that_read_one_value_are_one_unit(transformer):
    found = {unit.names for unit in units(transformer)}
    assert tuple(f"attention.{name}.weight" for name in ("query", "key", "value")) in found
    assert ("up.weight",) in found
    assert not any(unit.makers for unit in units(transformer))  # norms, attention and gelu compute in float


def test_makers_are_those_from_which_integers_could_pass(residual):
    makers = {unit.names[0]: set(unit.makers) for unit in units(residual)}
    assert makers["stem.0.weight"] == set()
    assert makers["branch.0.weight"] == {"stem.0.weight"}
    assert makers["depthwise.weight"] == {"stem.0.weight", "branch.0.weight"}
    assert makers["up.weight"] == {"depthwise.weight"}
    assert makers["hidden.weight"] == {"up.weight"}
    assert makers["head.weight"] == {"hidden.weight"}


def test_conversions_are_paid_at_borders_or_always(residual):
    found = units(residual)
    operators = [np.array([[1.0, 4.0]])] * len(found)
    names, seconds, conversions = assembled(found, operators, [0.5] * len(found), np.array([True, False]))
    assert seconds[names.index("stem.0.weight")].tolist() == [1.5, 4]
    assert seconds[names.index("head.weight")].tolist() == [1, 4]
    assert ("hidden.weight", "head.weight", 0.5) in conversions
    assert ("branch.0.weight", "depthwise.weight", 0.25) in conversions


def test_a_conversion_is_shared_by_those_that_read_the_value(transformer):
    found = units(transformer)
    operators = [np.zeros((len(unit.names), 2)) for unit in found]
    names, seconds, _ = assembled(found, operators, [0.6] * len(found), np.array([True, False]))
    assert seconds[names.index("attention.key.weight")].tolist() == pytest.approx([0.2, 0])
    assert seconds[names.index("up.weight")].tolist() == pytest.approx([0.6, 0])


def test_estimates_count_multiply_accumulates(residual):
    latency = estimated(residual)
    assert latency.backend == ESTIMATED
    weights = ["stem.0.weight", "depthwise.weight", "up.weight", "hidden.weight"]
    # 3 -> 8 channels, 3 x 3, 8 x 8 places; depthwise; 2 groups of 4 -> 3, 2 x 2, from 8 x 8 places; 6 -> 16
    macs = np.array([3 * 8 * 9 * 64, 8 * 9 * 64, 8 * 3 * 4 * 64, 6 * 16])
    seconds = latency.of(weights, ["int8", "fp32"])
    np.testing.assert_array_equal(seconds[:, 1], 4 * macs)
    np.testing.assert_array_equal(seconds[1:, 0], macs[1:])
    assert seconds[0, 0] > macs[0]
    assert json.dumps(latency.conversions)


def test_an_embedding_is_no_operator_that_reads_quantized_values(tied_graph):
    tokens = torch.randint(0, 40, (8, 7), generator=torch.Generator().manual_seed(0))
    static = quant.quantize(tied_graph, "static_plain", "int8", [(tokens,)])
    assert {name for unit in units(static) for name in unit.names} == {"feed_forward.weight", "embedding.weight"}
    weights_alone = quant.quantize(tied_graph, "rtn", "int4_g8")
    assert [unit.names for unit in units(weights_alone)].count(("embedding.weight",)) == 2
