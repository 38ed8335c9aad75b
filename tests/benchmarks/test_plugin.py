"""What a user of `pytest benchmarks` sees, in processes of their own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.matrix import matrix
from reports.record import unpack_outcomes, validate
from reports.runs import read_run
from tests.benchmarks.beside_inference import OTHERS

ROOT = Path(__file__).parents[2]
PYTEST = [sys.executable, "-m", "pytest"]
DIGITS_INT4 = "case(model='digits', bits='int4', backend='torch') and (case(method='rtn') or case(method='native'))"
SAMPLES = 40

# Progress is shown every ten seconds, which a test does not wait for.
TALKATIVE = "from benchmarks.progress import LiveLines\n\nLiveLines.SECONDS_BETWEEN_LINES = 0\n"
# What is timed is shown, however busy the machine that tests this is; or nothing is.
UNDISTURBED = "from benchmarks import timing\n\ntiming.refusal = lambda times: None\n"
BUSY = "from benchmarks import timing\n\ntiming.refusal = lambda times: timing.TOO_BUSY\n"
WITHOUT_COREMLTOOLS = """
import importlib.util

really = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "coremltools" else really(name, package)
"""


@dataclass
class Result:
    status: int
    output: str
    json: Path

    @property
    def lines(self):
        return self.output.splitlines()

    @property
    def benchmarks(self):
        return {entry["name"]: entry for entry in json.loads(self.json.read_text())["benchmarks"]}

    @property
    def records(self):
        return {name: entry["extra_info"]["quant"] for name, entry in self.benchmarks.items()}

    @property
    def table(self):
        """The lines of the table and its notes, from its header on."""
        header = next(i for i, line in enumerate(self.lines) if re.match(r"case\s+metric\s+delta", line))
        return self.lines[header : self.lines.index("", header)]

    def row(self, name):
        return next(line for line in self.table if line.startswith(name))

    def first_line(self, start):
        return next((line for line in self.lines if line.startswith(start)), None)


class Suite:
    """Runs `pytest benchmarks` as a user would; the runs share a cache, pytest's own cache and a storage."""

    def __init__(self, folder):
        self.folder, self.cache, self.storage = folder, folder / "cache", folder / "storage"
        (folder / "talkative.py").write_text(TALKATIVE)
        (folder / "undisturbed.py").write_text(UNDISTURBED)
        (folder / "busy.py").write_text(BUSY)
        (folder / "without_coremltools.py").write_text(WITHOUT_COREMLTOOLS)
        self._count = 0

    @property
    def environment(self):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
        return kept | {"PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]), "COLUMNS": "100"}

    def command(self, *arguments, cache=None):
        options = ["-p", "undisturbed", "-o", f"cache_dir={self.folder / 'pytest'}"]
        options += ["--cache-dir", cache or self.cache]
        options += ["--benchmark-storage", f"file://{self.storage}"]
        return [*PYTEST, "benchmarks", *map(str, options), *arguments]

    def run(self, *arguments, cache=None):
        self._count += 1
        file = self.folder / f"run{self._count}.json"
        command = self.command("--time-budget", "0.05", f"--benchmark-json={file}", *arguments, cache=cache)
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True)
        return Result(done.returncode, done.stdout + done.stderr, file)

    def run_on_terminal(self, *arguments):
        """What stands on the screen of a terminal of 100 columns after the run."""
        controller, terminal = os.openpty()
        streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
        process = subprocess.Popen(self.command(*arguments), env=self.environment, cwd=ROOT, **streams)
        os.close(terminal)
        written = b""
        with suppress(OSError):  # Linux ends a terminal that nobody holds open with an error
            while part := os.read(controller, 65536):
                written += part
        os.close(controller)
        assert process.wait() == 0, written.decode()
        return [overwrite(line) for line in re.sub(r"\x1b\[[\d;]*m", "", written.decode()).split("\n")]


def overwrite(line):
    """What is left of a line after each carriage return has started it anew."""
    shown = ""
    for part in line.split("\r"):
        shown = part + shown[len(part) :]
    return shown.rstrip()


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return Suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def first(suite):
    """A run of three cases with an empty cache, saved as `base`."""
    selection = f"{DIGITS_INT4} or case(model='digits', method='rtn', bits='int4', backend='coreml')"
    arguments = ["-p", "talkative", "-m", selection, "--eval-samples", str(SAMPLES), "--benchmark-save=base"]
    result = suite.run(*arguments)
    assert result.status == 0, result.output
    return result


@pytest.fixture(scope="module")
def compared(suite, first):
    """A verbose run against the first one, of its torch cases and float, after the tables were truncated."""
    damaged = [file for file in suite.cache.glob("tables/**/tables.safetensors") if file.stat().st_size > 1000]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:500])
    selection = [
        "-k",
        "digits and torch and (fp32 or int4) and (float or rtn or native)",
        "--eval-samples",
        str(SAMPLES),
    ]
    result = suite.run("-v", "-p", "talkative", "--benchmark-compare=0001", *selection)
    assert damaged
    assert result.status == 0, result.output
    return result


@pytest.fixture(scope="module")
def capped(suite, first):
    """A run of a case that no runtime times here, stopped after its first samples."""
    result = suite.run("-k", "digits-rtn-int4-coreml", "--case-seconds", "0.001", "--eval-samples", "500")
    assert result.status == 0, result.output
    return result


def test_a_selection_by_axes_runs_exactly_these_cases(first):
    assert set(first.benchmarks) == {"digits-native-int4-torch", "digits-rtn-int4-torch", "digits-rtn-int4-coreml"}
    assert re.search(r"\b3 passed\b", first.output)


def test_one_line_says_what_to_expect_before_the_first_case(first):
    position, line = next((i, line) for i, line in enumerate(first.lines) if re.match(r"\d+ cases of ", line))
    assert re.match(r"3 cases of 1 model \(digits\), about \d+ min", line)
    assert "-k" in line
    assert "train" not in line
    assert position < next(i for i, line in enumerate(first.lines) if "digits-native-int4-torch" in line)


def test_cases_that_will_train_are_announced(suite):
    result = suite.run("--collect-only", "-q", "-k", "digits and (qat or rtn) and int2 and torch")
    assert re.match(r"2 cases of 1 model \(digits\), about 1 min; 1 train first, for minutes each\. ", result.output)


def test_every_case_shows_a_row_on_a_line_of_its_own_as_it_finishes(first, compared):
    for result in (first, compared):
        section = next(i for i, line in enumerate(result.lines) if re.match(r"-+ benchmark", line))
        rows = [line for line in result.lines[:section] if " accuracy " in line]
        assert len(rows) == 3
        for row in rows:
            assert re.match(
                r"digits-\w+-\w+-(torch|coreml) +accuracy [\d.]+ .* MB .*(measured|simulated|evaluated)$", row
            )


@pytest.mark.skipif(os.name != "posix", reason="there is no pseudo-terminal")
def test_on_a_terminal_rows_replace_the_progress_line(suite, first):
    selection = [
        "-k",
        "digits and torch and (fp32 or int4) and (float or rtn or native)",
        "--time-budget",
        "0.05",
        "--eval-samples",
        str(SAMPLES),
    ]
    screen = suite.run_on_terminal(*selection)
    section = next(i for i, line in enumerate(screen) if re.match(r"-+ benchmark", line))
    rows = [line for line in screen[:section] if " accuracy " in line]
    assert [row.split()[0] for row in rows if row.startswith("digits-")] == [
        "digits-float-fp32-torch",
        "digits-native-int4-torch",
        "digits-rtn-int4-torch",
    ]
    assert not [line for line in screen[:section] if line.lstrip().startswith(("loading", "evaluating"))]


def test_long_steps_say_what_they_do(first):
    for step in ("exporting digits with torch.export", "compiling for coreml", "quantizing with rtn"):
        assert f"  {step}" in first.lines
    assert re.search(rf"^  evaluating digits-rtn-int4-torch: {SAMPLES}/{SAMPLES}$", first.output, re.MULTILINE)


def test_the_table_has_a_row_for_every_case_and_fits_100_columns(first):
    assert re.search(r"^-+ quantization -+$", first.output, re.MULTILINE)
    header = first.table[0].split()
    assert header == ["case", "metric", "delta", "MB", "ms", "speed", "evidence"]
    for name, entry in first.records.items():
        assert first.row(name).rstrip().endswith(entry["evidence"])
    assert max(map(len, first.table)) <= 100


def test_after_the_table_comes_advice_and_where_the_run_was_saved(first):
    assert first.first_line("digits: ").endswith(".")
    assert first.first_line("Saved as ")
    assert first.first_line("Next: ")
    assert str(first.json) in first.first_line("Saved as ")


def test_pytest_benchmarks_table_shows_median_iqr_and_rounds_of_timed_cases(first):
    start = next(i for i, line in enumerate(first.lines) if re.match(r"-+ benchmark 'digits': 2 tests -+$", line))
    assert first.lines[start + 1].split()[-3:] == ["Median", "IQR", "Rounds"]
    shown = [line.split()[0] for line in first.lines[start + 3 : start + 5]]
    assert sorted(shown) == ["digits-native-int4-torch", "digits-rtn-int4-torch"]


def test_records_are_valid_and_go_by_kind_and_case(first):
    for name, entry in first.benchmarks.items():
        record = entry["extra_info"]["quant"]
        assert validate(record) == []
        assert entry["fullname"] == f"inference:{name}"
        assert entry["group"] == "digits"
        assert "-".join(record["case"].values()) == name
        assert record["accuracy"]["n"] == SAMPLES
        assert record["accuracy"]["truncated"] is False


def test_speed_is_recorded_where_the_runtime_runs(first):
    timed, evaluated = first.records["digits-rtn-int4-torch"], first.records["digits-rtn-int4-coreml"]
    assert timed["speed"]["ci95"][0] <= timed["speed"]["ratio"] <= timed["speed"]["ci95"][1]
    baseline, variant = (
        unpack_outcomes(timed["speed"]["samples"][name], timed["speed"]["samples"]["rounds"])
        for name in ("baseline", "variant")
    )
    assert len(variant) >= 12
    if len(variant) == timed["speed"]["rounds"]:
        assert np.median(baseline / variant) == pytest.approx(timed["speed"]["ratio"], rel=1e-3)
    assert timed["speed"]["p50"] == pytest.approx(first.benchmarks["digits-rtn-int4-torch"]["stats"]["median"])
    if sys.platform != "darwin":
        assert evaluated["evidence"] == "evaluated"
        assert list(evaluated["speed"]) == ["reason"]


def test_the_run_says_what_it_planned_and_where(first):
    run = read_run(first.json)
    assert sorted(run.quant["planned"]) == sorted(first.benchmarks)
    assert not set(run.quant["planned"]) & set(run.quant["deselected"])
    assert {*run.quant["planned"], *run.quant["deselected"]} == {*(case.id for case in matrix()[0]), *OTHERS}
    assert run.quant["settings"]["eval_samples"] == SAMPLES
    assert "backend='torch'" in run.quant["selection"]["markers"]
    assert run.machine["quant"]["threads"] == 1
    assert run.machine["quant"]["versions"]["torch"]


def test_a_saved_run_carries_the_records(suite, first):
    (saved,) = suite.storage.rglob("0001_base.json")
    assert [validate(record) for record in read_run(saved).records] == [[], [], []]


def test_a_damaged_cache_entry_is_built_again_with_a_warning(compared):
    assert re.search(
        r"CacheWarning: cache entry .* is damaged \(tables\.safetensors\) and is built again\.", compared.output
    )
    assert compared.records["digits-rtn-int4-torch"]["cost"]["cached"] is False


def test_a_rebuilt_entry_gives_the_same_figures(first, compared):
    before, after = (run.records["digits-rtn-int4-torch"] for run in (first, compared))
    for section in ("accuracy", "fidelity", "parity", "size", "scores", "coverage"):
        assert after[section] == before[section]


def test_compare_shows_both_runs_and_saves_the_records(compared):
    for name in ("digits-rtn-int4-torch", "digits-native-int4-torch"):
        assert re.search(rf"^{name} \(NOW\)", compared.output, re.MULTILINE)
        assert re.search(rf"^{name} \(0001_base\)", compared.output, re.MULTILINE)
    assert "machine_info is different" not in compared.output
    assert "ran elsewhere" not in compared.output
    assert [validate(record) for record in compared.records.values()] == [[], [], []]


def test_another_environment_than_the_baselines_is_named(suite, first):
    arguments = ["-k", "digits-rtn-int4-torch", "--benchmark-compare=0001", "--threads", "2", "--collect-only"]
    result = suite.run(*arguments)
    assert result.status == 0, result.output
    assert "The baseline ran elsewhere, so times are not comparable: threads: 2, was 1." in result.output
    assert "INTERNALERROR" not in result.output


def test_the_minutes_to_expect_come_from_earlier_runs(suite, first):
    durations = json.loads((suite.folder / "pytest" / "v" / "quant" / "seconds").read_text())
    assert set(durations) >= set(first.benchmarks)
    assert all(0 < seconds < 600 for seconds in durations.values())


def test_verbose_adds_columns(compared):
    header = " ".join(compared.table[0].split())
    for column in ("flips", "error", "bits/weight", "native", "parity"):
        assert column in header


def test_a_time_cap_marks_the_record_truncated(capped):
    record = capped.records["digits-rtn-int4-coreml"]
    assert validate(record) == []
    assert record["accuracy"]["truncated"] is True
    assert 1 <= record["accuracy"]["n"] == record["fidelity"]["n"] < 500
    outcomes = unpack_outcomes(record["scores"]["packed"], record["accuracy"]["n"])
    assert outcomes.mean() == pytest.approx(record["accuracy"]["value"])


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is timed on macOS")
def test_a_run_without_times_has_our_table_alone(capped):
    assert not re.search(r"-+ benchmark", capped.output)
    assert "evaluated" in capped.row("digits-rtn-int4-coreml").split()


@pytest.fixture(scope="module")
def with_memory(suite, first):
    """A verbose run on a machine that is too busy to time anything."""
    selection = ["-k", "digits-rtn-int4-torch or digits-float-fp32-torch", "--eval-samples", str(SAMPLES)]
    result = suite.run("-p", "busy", "-v", "--memory", *selection)
    assert result.status == 0, result.output
    return result


def test_memory_is_a_column_and_in_the_row_of_a_case(with_memory):
    for name, record in with_memory.records.items():
        assert validate(record) == []
        memory = record["memory"]
        assert 0 < memory["growth_bytes"] < memory["peak_bytes"]
        assert 0 < memory["baseline_growth_bytes"] < memory["baseline_peak_bytes"]
        shown = f"({memory['growth_bytes'] / memory['baseline_growth_bytes']:.2f}×)"
        assert shown in with_memory.row(name)
        assert shown in next(line for line in with_memory.lines if line.startswith(f"{name} "))
    assert with_memory.records["digits-float-fp32-torch"]["memory"]["ratio"] == 1


def test_memory_is_not_measured_unasked(first):
    assert {str(entry["memory"]) for entry in first.records.values()} == {
        str({"reason": "memory is measured with --memory"})
    }


def test_a_busy_machine_shows_accuracy_and_says_why_there_is_no_time(with_memory):
    for record in with_memory.records.values():
        assert record["accuracy"]["value"] is not None
        assert record["speed"]["refused"] is True
        assert record["speed"]["ratio"] is record["speed"]["p50"] is record["speed"]["samples"] is None
    assert sum(line.startswith("– not timed: other programs left too few cores") for line in with_memory.table) == 1
    assert not re.search(r"-+ benchmark", with_memory.output)


def test_workers_send_their_rows_to_one_table(suite, first):
    """And find what an earlier run made in the cache, as a later run finds what they made."""
    made = {manifest: manifest.stat().st_mtime_ns for manifest in suite.cache.glob("outputs/*/manifest.json")}
    selection = ["-k", "digits-native-int4-torch or digits-rtn-int4-torch", "--eval-samples", str(SAMPLES)]
    result = suite.run("-n", "2", *selection)
    assert result.status == 0, result.output
    assert result.row("digits-native-int4-torch")
    assert result.row("digits-rtn-int4-torch")
    after = {manifest: manifest.stat().st_mtime_ns for manifest in suite.cache.glob("outputs/*/manifest.json")}
    assert after == made != {}


def test_a_killed_run_loses_nothing_it_had_made(suite, tmp_path):
    cache, selection = tmp_path / "cache", ["-k", "digits-rtn-int4-torch", "--eval-samples", "3"]
    command = suite.command("--time-budget", "600", *selection, cache=cache)
    process = subprocess.Popen(command, env=suite.environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(cache.glob("artifacts/*/manifest.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

    made = {manifest: manifest.stat().st_mtime_ns for manifest in cache.rglob("manifest.json")}
    assert {"graphs", "templates", "tables", "artifacts"} <= {manifest.parts[-3] for manifest in made}
    result = suite.run(*selection, cache=cache)
    assert result.status == 0, result.output
    assert result.records["digits-rtn-int4-torch"]["cost"]["cached"] is True
    assert {manifest: manifest.stat().st_mtime_ns for manifest in made} == made
    assert "CacheWarning" not in result.output
    assert list(cache.rglob("*.unfinished")) == []


def test_a_missing_package_skips_with_the_command_that_adds_it(suite):
    result = suite.run("-p", "without_coremltools", "-rs", "-k", "digits-rtn-int4-coreml")
    assert result.status == 0, result.output
    assert "1 skipped" in result.output
    assert "not installed: pip install coremltools" in result.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["--threads", "0"], "--threads", id="no threads"),
        pytest.param(["--batch", "0"], "--batch", id="no batch"),
        pytest.param(["--eval-samples", "0"], "--eval-samples", id="no samples"),
        pytest.param(["--time-budget", "nan"], "--time-budget", id="no budget"),
        pytest.param(["--case-seconds=-1"], "--case-seconds", id="negative cap"),
        pytest.param(["--max-drop", "1%"], "a number of points such as 1pp", id="a drop that is no points"),
    ],
)
def test_a_bad_option_is_a_usage_error_in_one_sentence(suite, arguments, named):
    result = suite.run("--collect-only", "-q", *arguments)
    assert result.status == pytest.ExitCode.USAGE_ERROR
    (sentence,) = [line for line in result.lines if named in line]
    assert re.search(r"must be|at least|positive number", sentence)
    assert "_positive" not in sentence
    assert "Traceback" not in result.output
    assert "INTERNALERROR" not in result.output


def test_list_unsupported_prints_every_combination_left_out_and_why(suite):
    result = suite.run("--list-unsupported")
    assert result.status == 0
    stated = dict(line.split(": ", 1) for line in result.lines)
    assert set(stated) == {entry.case.id for entry in matrix()[1]}
    assert all(reason.endswith(".") and not reason.endswith("..") for reason in stated.values())


def test_what_a_quantizer_costs_is_a_row_of_a_table_of_its_own(suite, first):
    name = "quantize:digits-rtn-int4-torch"
    result = suite.run("-m", "quantize", "-k", "digits-rtn-int4-torch")
    assert result.status == 0, result.output
    (entry,) = json.loads(result.json.read_text())["benchmarks"]
    record = entry["extra_info"]["quant"]
    assert entry["fullname"] == name
    assert validate(record) == []
    assert record["cost"]["seconds"] > 0
    assert record["cost"]["peak_bytes"] > 0
    assert result.first_line(f"{name} ")
    header = next(i for i, line in enumerate(result.lines) if re.match(r"quantizer +s ", line))
    assert result.lines[header + 2].split()[0] == "digits-rtn-int4-torch"
    assert not re.search(r"-+ benchmark", result.output)
    assert read_run(result.json).quant["planned"] == [name]


@pytest.fixture
def folder_of_a_user(pytester, monkeypatch):
    """A folder with tests of a user's own, who loads the plugins by name."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    pytester.makepyfile(test_mine="from benchmarks.test_inference import test_inference")
    return pytester


def run_as_user(pytester, suite, *arguments):
    options = [
        "-p",
        "fixtures.plugin",
        "-p",
        "benchmarks.plugin",
        "-p",
        "no:cacheprovider",
        "--benchmark-json=run.json",
    ]
    options += ["--cache-dir", suite.cache, "--time-budget", "0.05", "--eval-samples", str(SAMPLES)]
    pytester.makepyfile(undisturbed=UNDISTURBED)
    options += ["-p", "undisturbed"]
    result = pytester.runpytest_subprocess(*options, *arguments)
    return result, Result(result.ret, result.stdout.str(), pytester.path / "run.json")


def test_a_user_adds_a_figure_to_every_record(folder_of_a_user, suite, first):
    """The example of `pytest_quant_record`; and a case that fails after it was timed is no baseline."""
    folder_of_a_user.makeconftest(
        """
        def pytest_quant_record(config, record):
            seconds = record["speed"].get("p50")  # None where it was not timed
            record["carbon"] = {"grams": 0.4e-3 * seconds} if seconds else {"reason": "not timed"}
        """
    )
    folder_of_a_user.makepyfile(
        test_failing="""
        from benchmarks.test_inference import test_inference

        def test_worse(case, calibration, evaluation, workshop, measurement):
            test_inference(case, calibration, evaluation, workshop, measurement)
            assert case.bits != "int4"
        """
    )
    selection = ["-k", "digits-rtn-int4-torch and not test_failing.py or test_worse and digits-rtn-int4-torch"]
    outcome, result = run_as_user(folder_of_a_user, suite, *selection)
    outcome.assert_outcomes(passed=1, failed=1)
    (entry,) = json.loads(result.json.read_text())["benchmarks"]
    record = entry["extra_info"]["quant"]
    assert record["carbon"] == {"grams": pytest.approx(0.4e-3 * record["speed"]["p50"])}
    assert validate(record) == []
    assert sum(line.startswith("digits-rtn-int4-torch") for line in result.table) == 1


def test_a_quantizer_that_fails_in_its_process_fails_its_case_in_a_sentence(folder_of_a_user, suite):
    folder_of_a_user.makepyfile(
        test_broken="""
        import pytest
        from benchmarks.cost import QuantizerError

        @pytest.mark.quantize
        def test_broken(case, workshop):
            raise QuantizerError(f"{case} could not be quantized: ValueError: it is broken.")
        """
    )
    outcome, result = run_as_user(
        folder_of_a_user, suite, "-m", "quantize", "-k", "test_broken and digits-rtn-int4-torch"
    )
    outcome.assert_outcomes(failed=1)
    assert "digits-rtn-int4-torch could not be quantized: ValueError: it is broken." in result.lines
    assert "raise QuantizerError" not in result.output
    assert "Traceback" not in result.output


def test_an_invalid_figure_fails_its_own_case_in_a_sentence(folder_of_a_user, suite, first):
    folder_of_a_user.makeconftest(
        """
        import numpy

        FIGURES = {"fp32": float("nan"), "int4": numpy.float64(1.5), "fp16": 1.5}

        def pytest_quant_record(config, record):
            record["carbon"] = {"grams": FIGURES[record["case"]["bits"]]}
        """
    )
    selection = "digits-float-fp32-torch or digits-float-fp16-torch or digits-rtn-int4-torch"
    outcome, result = run_as_user(folder_of_a_user, suite, "-k", selection)
    outcome.assert_outcomes(passed=1, failed=2)
    assert "carbon.grams is nan; a missing figure is null with a reason." in result.output
    assert "carbon.grams is a numpy.float64, not a plain JSON type" in result.output
    assert "Traceback" not in result.output
    assert set(result.records) == {"digits-float-fp16-torch"}
    assert not [line for line in result.table if line.startswith(("digits-rtn", "digits-float-fp32"))]


def test_a_selection_without_a_case_says_what_they_are_called(fake_suite, records):
    result = fake_suite.run(list(records.values()), "-k", "nothing_of_the_kind")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["No case is selected: they are called model-method-bits-backend, such as *"])


def test_a_method_that_is_not_understood_ends_the_run_in_one_sentence(fake_suite, records, monkeypatch):
    def misread():
        raise ValueError("quant/methods/mine.py has no literal METHODS.")

    monkeypatch.setattr("benchmarks.plugin.methods", misread)
    result = fake_suite.run(list(records.values()))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert fake_suite.sentence(result) == "ERROR: quant/methods/mine.py has no literal METHODS."
