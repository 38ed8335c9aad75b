"""Runs that are really measured: whole ones in processes of their own, and one case with its kernel slowed."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import timing
from benchmarks.matrix import Case
from benchmarks.reliability.campaigns import Rate
from benchmarks.workshop import Workshop
from reports.judgement import judge
from reports.limits import parse_limit
from reports.record import Record, plain
from reports.runs import Run, read_valid_run

PAIRS = 25
SECONDS_PER_CASE = 0.5
SELECTED = (
    "(digits or mobilenet_v2) and (torch or onnxruntime) and (float-fp32 or rtn-int8 or gptq-int4 or static_plain-int8)"
    " or minilm-dynamic-int8-onnxruntime"
)
"""Cases of long and short calls, each of which comes with its own noise."""

_ROOT = Path(__file__).parents[2]
_EDITED = Path("quant/methods/rtn.py")
_FAULT = """

rounded = quantize


def quantize(*arguments, **settings):
    from dataclasses import replace

    made = rounded(*arguments, **settings)
    return replace(made, weights={name: replace(w, scale=1.05 * w.scale) for name, w in made.weights.items()})
"""


def repeated(folder: Path, count: int) -> list[Run]:
    """Run the selected cases ``count`` times, one process after the other."""
    return [_run(_ROOT, folder / f"{i}.json", SELECTED) for i in range(count)]


def case_alarms(name: str, pairs: Sequence[tuple[Run, Run]], limit: str) -> Rate:
    """Return how many cases, judged in the run they belong to, were called a regression."""
    findings = [finding for base, head in pairs for finding in judge(base, head, [parse_limit(limit)]).findings]
    judged = [finding for finding in findings if finding.verdict != "not judged"]
    return Rate(name, sum(finding.verdict == "regressed" for finding in judged), len(judged))


def edited_method(folder: Path) -> tuple[Run, Run]:
    """Run a case, edit its method in a copy of the project, and run it again with the same cache."""
    copy = folder / "project"
    names = subprocess.run(["git", "ls-files"], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, names):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_ROOT / name, copy / name)
    selected = "digits-rtn-int8-torch"
    before = _run(copy, folder / "before.json", selected, f"--cache-dir={folder / 'cache'}")
    with (copy / _EDITED).open("a") as file:
        file.write(_FAULT)
    return before, _run(copy, folder / "after.json", selected, f"--cache-dir={folder / 'cache'}")


def slowed(workshop: Workshop, case: Case, by: float, repeats: int, seconds: float) -> list[tuple[Run, Run]]:
    """Time a case as it is and with a kernel that takes ``by`` longer, by turns, for ``seconds`` each."""
    tables = workshop.quantize(case, workshop.calibration(case.model))
    artifact = workshop.compile(case, tables, workshop.calibration(case.model))
    baseline = workshop.baseline(case)
    twin, inputs = workshop.twin(baseline), workshop.first_batch(workshop.evaluation(case.model))

    def record(call: timing.Call) -> Record:
        models = timing.Models(call, lambda: baseline.executable(*inputs), lambda: twin(*inputs))
        times = timing.compare(models, seconds, workshop.settings.threads)
        return _record(case, timing.speed(times))

    def sound() -> object:
        return artifact.executable(*inputs)

    def slow() -> object:
        start = time.perf_counter()
        result = sound()
        end = start + (1 + by) * (time.perf_counter() - start)
        while time.perf_counter() < end:
            pass
        return result

    return [(Run(Path("base"), [record(sound)]), Run(Path("head"), [record(slow)])) for _ in range(repeats)]


def _record(case: Case, speed: dict[str, object]) -> Record:
    none = {"reason": "only its speed is measured"}
    axes = {axis: getattr(case, axis) for axis in ("model", "method", "bits", "backend")}
    sections = dict.fromkeys(("accuracy", "fidelity", "size", "cost", "memory", "scores", "model"), none)
    return plain({"kind": "inference", "case": axes, "evidence": "measured", **sections, "speed": speed})


def _run(project: Path, file: Path, selected: str, *options: str) -> Run:
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-k", selected, f"--benchmark-json={file}"]
    command += [f"--time-budget={SECONDS_PER_CASE}", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` ended with {done.returncode}: {done.stdout[-2000:]}")
    return read_valid_run(file)


def environment() -> dict[str, str]:
    """The environment without what would make pytest take the new process for part of this one."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
