import pytest

from reports.tables import WIDTH, delta_text, memory_text, metric_text, speed_text, table


def row(drawn, name):
    (line,) = [line for line in drawn.splitlines() if line.startswith((name, f"| {name} "))]
    return line


def notes(drawn):
    """The lines under the table, wrapped ones joined."""
    lines = drawn.splitlines()
    start = next(index for index, line in enumerate(lines) if "Shares in percent" in line)
    return "\n".join(lines[start:]).replace("\n  ", " ").splitlines()


def test_a_row_shows_what_was_measured(make_record):
    drawn = table([make_record()])
    assert drawn.splitlines()[0].split() == ["case", "metric", "delta", "MB", "ms", "speed", "evidence"]
    shown = row(drawn, "minilm-gptq-int4-onnxruntime").split()
    assert shown[1:] == ["accuracy", "94.0", "-0.6", "±1.2", "14.5", "12.3", "1.87×", "±.04", "measured"]


@pytest.mark.parametrize(
    ("delta", "ci95", "shown"),
    [
        (-0.006, [-0.018, 0.006], "-0.6 ±1.2"),
        (-0.006, [-0.0184, 0.006], "-0.6 ±1.3"),
        (-0.006, [-0.030, 0.006], "-0.6 -2.4/+1.2"),
        (0.0, [-0.004, 0.004], "0.0 ±.4"),
        (-0.0001, [-0.0003, 0.0001], "0.0 ±.1"),
        (0.02, [0.0, 0.04], "+2.0 ±2.0"),
        (0.0, [0.0, 0.0], "0.0 ±0"),
        (-0.006, [-0.03, -0.01], "-0.6 [-3.0, -1.0]"),
        (-0.006, None, "-0.6"),
        (None, None, "–"),
    ],
)
def test_the_delta_is_in_points_and_its_interval_never_narrower(make_record, delta, ci95, shown):
    assert delta_text(make_record(**{"accuracy.delta": delta, "accuracy.ci95": ci95})) == shown


@pytest.mark.parametrize(
    ("baseline", "value", "delta", "ci95", "metric", "shown"),
    [
        (23.1, 23.41, 0.31, [0.26, 0.36], "perplexity 23.41", "+0.31 ±.05"),
        (0.0123, 0.0120, -0.0003, [-0.0005, -0.0001], "perplexity 0.01200", "-0.00030 ±.00020"),
        (1200.4, 1234.5, 34.1, [20.0, 40.0], "perplexity 1234", "+34 -15/+6"),
        (0.5, 0.0, -0.5, [-0.6, -0.4], "perplexity 0.000", "-0.500 ±.100"),
    ],
)
def test_other_metrics_stay_in_their_own_unit(make_record, baseline, value, delta, ci95, metric, shown):
    figures = {"metric": "perplexity", "better": "lower", "n": 9, "baseline": baseline, "value": value}
    record = make_record(accuracy={**figures, "delta": delta, "ci95": ci95})
    assert metric_text(record) == metric
    assert delta_text(record) == shown


@pytest.mark.parametrize(
    ("ratio", "ci95", "shown"),
    [
        (1.87, [1.83, 1.91], "1.87× ±.04"),
        (1.87, [1.5, 1.95], "1.87× -.37/+.08"),
        (0.06, [0.05, 0.07], "0.06× ±.01"),
        (1.0, None, "1.00×"),
        (None, None, "–"),
    ],
)
def test_the_speed_is_a_ratio(make_record, ratio, ci95, shown):
    assert speed_text(make_record(**{"speed.ratio": ratio, "speed.ci95": ci95})) == shown


def test_without_labels_agreement_stands_in(make_record):
    record = make_record(accuracy={"reason": "no labels without --imagenet"}, **{"fidelity.agreement": 0.925})
    drawn = table([record])
    assert row(drawn, "minilm-gptq").split()[1:4] == ["agree", "92.5", "–"]
    assert notes(drawn)[1:] == ["– no labels without --imagenet"]


def test_nothing_measured_is_dashes_with_every_reason_once(make_record):
    reasons = {"accuracy": "no labels", "fidelity": "no outputs", "size": "no file", "speed": "--benchmark-disable"}
    empty = {section: {"reason": reason} for section, reason in reasons.items()}
    ids = ("minilm-rtn-int4-mlx", "minilm-rtn-int3-mlx")
    drawn = table([make_record(case, **empty) for case in ids])
    assert row(drawn, "minilm-rtn-int4-mlx").split()[1:] == ["–", "–", "–", "–", "–", "measured"]
    assert sorted(notes(drawn)[1:]) == sorted(f"– {reason}" for reason in reasons.values())


def test_a_reason_names_whom_it_concerns(make_record):
    macos, labels = {"speed": {"reason": "time needs macOS"}}, {"accuracy": {"reason": "no labels"}}
    records = [
        make_record("minilm-rtn-int4-coreml", **macos),
        make_record("minilm-rtn-int4-mlx"),
        make_record("mobilenet_v2-rtn-int4-coreml", **macos, **labels),
        make_record("mobilenet_v2-rtn-int4-mlx", **labels),
        make_record("minilm-gptq-int3-mlx", size={"reason": "the file is gone"}),
        make_record("minilm-gptq-int3-onnxruntime"),
        make_record("digits-awq-int3-mlx"),
    ]
    explained = notes(table(records))
    assert "– coreml: time needs macOS" in explained
    assert "– mobilenet_v2: no labels" in explained
    assert "– minilm-gptq-int3-mlx: the file is gone" in explained


def test_a_reason_that_names_its_scope_is_not_named_twice(make_record):
    records = [make_record("minilm-rtn-int4-coreml", speed={"reason": "coreml: time needs macOS"}), make_record()]
    assert "– coreml: time needs macOS" in notes(table(records))


def test_a_figure_that_is_shown_needs_no_reason(make_record):
    assert "p99" not in table([make_record()])


def test_a_refused_ratio_is_explained_once(make_record):
    refused = {f"speed.{name}": None for name in ("ratio", "ci95", "p50", "p90", "baseline_p50", "samples")}
    reason = {"speed.refused": True, "speed.reason": "float differed from float"}
    drawn = table([make_record(**refused, **reason)])
    assert row(drawn, "minilm").split()[-4:] == ["14.5", "–", "–", "measured"]
    assert notes(drawn).count("– float differed from float") == 1


def test_rows_are_sorted_and_float_leads_its_model(make_record):
    ids = [
        "reviews_lstm-dynamic-int8-torch",
        "minilm-mixed-mixed_4p5-mlx",
        "minilm-rtn-int4-torch",
        "minilm-rtn-int4-mlx",
        "minilm-gptq-int4-torch",
        "minilm-rtn-e4m3-torch",
        "minilm-static-w4a8-torch",
        "minilm-static-int8-torch",
        "minilm-float-bf16-torch",
        "minilm-float-fp32-torch",
        "digits-float-fp32-mlx",
    ]
    order = [9, 8, 5, 7, 4, 3, 2, 6, 1]
    shown = [line.split()[0] for line in table([make_record(case) for case in ids], format="github").splitlines()[2:13]]
    names = [line.split()[1] for line in table([make_record(case) for case in ids], format="github").splitlines()[2:13]]
    assert shown == ["|"] * 11
    assert names == [ids[10], *(ids[index] for index in order), ids[0]]


def test_other_kinds_are_named_and_follow(make_record):
    drawn = table([make_record(kind="quantize"), make_record()])
    assert [line.split()[0] for line in drawn.splitlines()[2:4]] == [
        "minilm-gptq-int4-onnxruntime",
        "quantize:minilm-gptq-int4-onnxruntime",
    ]


LONG = {"speed.ci95": [1.5, 1.95], "accuracy.ci95": [-0.03, 0.006]}


@pytest.mark.parametrize(
    "case",
    [
        "mobilenet_v2-smoothquant-int8-onnxruntime",
        "reviews_lstm-smoothquant-int4_g128-onnxruntime",
        "a_model_somebody_named_at_length-smoothquant_with_search-mixed_4p5-onnxruntime_apple",
        f"{'m' * 60}-{'x' * 60}-int4-torch",
    ],
)
def test_the_table_fits_a_terminal(make_record, case):
    record = make_record(case, evidence="simulated", **LONG)
    perplexity = make_record("reviews_gpt-gptq-int4-mlx", **{"accuracy.metric": "perplexity", "accuracy.value": 2341.0})
    drawn = table([record, perplexity])
    assert max(map(len, drawn.splitlines())) <= WIDTH
    assert "1.87× -.37/+.08" in drawn
    assert "-0.6 -2.4/+1.2" in drawn


def test_a_long_id_is_spelled_by_its_heading_and_its_row(make_record):
    case = "mobilenet_v2-smoothquant-int8-onnxruntime"
    drawn = table([make_record(case, evidence="simulated", **LONG)])
    lines = [line.split() for line in drawn.splitlines()]
    heading = next(index for index, line in enumerate(lines) if line == ["mobilenet_v2", "accuracy"])
    assert lines[heading][0] + lines[heading + 1][0] == case
    assert lines[heading + 1][1] == "94.0"


def test_footnotes_are_wrapped_too(make_record):
    record = make_record(speed={"reason": "because " * 40})
    assert max(map(len, table([record]).splitlines())) <= WIDTH


def test_verbose_adds_what_proves_the_quantization(make_record):
    drawn = table([make_record()], verbose=True)
    for header in ("flips", "error", "bits/weight", "native", "parity"):
        assert header in drawn.splitlines()[0]
    assert "-7 +4" in drawn
    assert "99 / 97 / 0" in drawn
    assert "1.2e-06" in drawn
    record = make_record(coverage={"reason": "the runtime hides its graph"}, parity={"reason": "not run"})
    assert {"– the runtime hides its graph", "– not run"} <= set(notes(table([record], verbose=True)))
    assert "hides" not in table([record])


def test_markdown_is_one_table_and_a_list(make_record):
    case = "mobilenet_v2-smoothquant-int8-onnxruntime"
    lines = table([make_record(case, **LONG)], format="github").splitlines()
    assert lines[0].startswith("| case")
    assert case in lines[2]
    assert lines[3] == ""
    assert all(line.startswith("- ") for line in lines[4:])


def test_backends_that_ran_other_schemes_are_named(make_record):
    grouped = {"scheme": {"weights": {"bits": 4, "group_size": 64}, "activations": None}}
    channel = {"scheme": {"weights": {"bits": 4}}}
    records = [
        make_record("minilm-rtn-int4-mlx", **grouped),
        make_record("minilm-rtn-int4-coreml", **channel),
        make_record("minilm-rtn-int4-torch", **channel),
        make_record("minilm-gptq-int4-mlx", **channel),
        make_record("minilm-gptq-int4-torch", **channel),
    ]
    assert [note for note in notes(table(records)) if "scheme" in note] == [
        "* minilm-rtn-int4: backends ran different schemes: weights.group_size none on coreml and torch, 64 on mlx."
    ]


def test_a_kernel_that_quantizes_more_than_asked_is_named(make_record):
    noted = make_record("minilm-rtn-int4-onnxruntime", **{"coverage.notes": ["accuracy_level 4 quantizes activations"]})
    records = [noted, make_record("minilm-rtn-int4-mlx")]
    assert "* onnxruntime: accuracy_level 4 quantizes activations" in notes(table(records))


@pytest.mark.parametrize(
    ("memory", "shown"),
    [
        ({"peak_bytes": 400_000_000, "growth_bytes": 56_500_000, "ratio": 0.353}, "+56.5 MB (0.35×)"),
        ({"peak_bytes": 400_000_000, "growth_bytes": 0, "ratio": None, "reason": "float grew by nothing"}, "+0 MB"),
        ({"reason": "memory is measured with --memory"}, "–"),
    ],
)
def test_memory_is_what_a_case_adds_and_its_ratio_to_float(make_record, memory, shown):
    record = make_record(memory=memory)
    assert memory_text(record) == shown
    drawn = table([record], verbose=True)
    assert drawn.splitlines()[0].split()[-1] == "memory"
    assert row(drawn, "minilm").rstrip().endswith(shown)
    assert ("– memory is measured with --memory" in notes(drawn)) == (shown == "–")
    assert "memory" not in table([record])


def test_simulated_and_evaluated_are_explained_where_they_occur(make_record):
    plain = table([make_record()])
    assert "simulated" not in plain
    drawn = table([make_record(evidence="simulated"), make_record("minilm-rtn-int4-coreml", evidence="evaluated")])
    assert [note.split(":")[0] for note in notes(drawn)[1:3]] == ["evaluated", "simulated"]


def test_no_records_is_a_sentence():
    assert table([]) == "No case was measured."
