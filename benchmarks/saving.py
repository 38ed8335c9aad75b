"""Saved runs: the baseline of ``--benchmark-compare``, runs cut short, and runs without times.

pytest-benchmark writes and reads the files. Before it does, this plugin finds the save that a name means, names a run
that did not come to its end ``NAME.partial``, and adds the cases that pytest-benchmark did not time: it would save
nothing of a run with ``--benchmark-disable`` or of xdist's workers.
"""

import hashlib
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.outcomes import outcomes
from quant import hardware
from reports.files import refuse_unwritable
from reports.record import SCHEMA, Record, case_id, full_name
from reports.runs import Run, RunError
from reports.storage import PARTIAL, find_run

BASELINE = pytest.StashKey[Run]()
_PLACE = pytest.StashKey[dict]()
_STARTED = pytest.StashKey[float]()
_SERVER = "elasticsearch+"
_SETTINGS = ("threads", "batch", "eval_samples", "time_budget", "case_seconds", "memory", "tuned", "backend")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STARTED] = time.time()
    option = config.option
    if is_worker(config):
        # The process that reports saves and compares; a worker may not even have its storage.
        option.benchmark_compare, option.benchmark_save, option.benchmark_autosave, option.benchmark_json = [None] * 4
        return
    _refuse_unwritable(config)
    if option.benchmark_compare:
        name = None if option.benchmark_compare is True else option.benchmark_compare
        try:
            baseline = find_run(name, storage_folder(config), hardware.processor().name)
        except RunError as error:
            raise pytest.UsageError(str(error)) from None
        config.stash[BASELINE] = baseline
        option.benchmark_compare = str(baseline.path.resolve())


def _refuse_unwritable(config: pytest.Config) -> None:
    """Refuse what pytest-benchmark could not write in the end, when all was measured, and a cache that is none."""
    option = config.option
    files = [Path(option.benchmark_json)] if option.benchmark_json else []
    served = option.benchmark_storage.startswith(_SERVER)
    if (option.benchmark_save or option.benchmark_autosave) and not served:
        files.append(storage_folder(config) / "save.json")
    if option.cache_dir:
        files.append(option.cache_dir / "cached")
    try:
        for file in files:
            refuse_unwritable(file)
    except RunError as error:
        raise pytest.UsageError(str(error)) from None


def is_worker(config: pytest.Config) -> bool:
    """Whether this is one of xdist's workers, which report to another process."""
    return hasattr(config, "workerinput")


def storage_folder(config: pytest.Config) -> Path:
    """Return the folder of ``--benchmark-storage``.

    Raises:
        pytest.UsageError: it is not a folder but a server.
    """
    location = config.option.benchmark_storage
    if location.startswith(_SERVER):
        raise pytest.UsageError(f"Runs in {location} cannot be compared; name a folder with --benchmark-storage=DIR.")
    return Path(location.removeprefix("file://"))


def pytest_quant_record(config: pytest.Config, record: Record) -> None:
    """Say where a worker ran, which may be another machine than the one that saves."""
    if is_worker(config):
        if _PLACE not in config.stash:
            config.stash[_PLACE] = config._benchmarksession.get_machine_info()["quant"]
        record["environment"] = config.stash[_PLACE]


def _leave_out_own_place(config: pytest.Config, records: Iterable[Record]) -> None:
    """Keep the environment only of records that were not made here: a run's own is told once."""
    sent = [record for record in records if "environment" in record]
    here = config._benchmarksession.get_machine_info()["quant"] if sent else None
    for record in sent:
        if record["environment"] == here:
            del record["environment"]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> object:
    """Prepare what pytest-benchmark is about to save."""
    config = session.config
    if not is_worker(config):
        benchmarks, records = config._benchmarksession, outcomes(config).records.values()
        _leave_out_own_place(config, records)
        benchmarks.benchmarks += untimed(records, benchmarks.benchmarks)
        if not outcomes(config).complete:
            _name_as_partial(benchmarks)
        if benchmarks.json:
            Path(benchmarks.json).parent.mkdir(parents=True, exist_ok=True)
    return (yield)


def untimed(records: Iterable[Record], benchmarks: list) -> "list[Untimed]":
    """Return those records that no benchmark holds, each in the place of one."""
    held = {full_name(bench.extra_info["quant"]) for bench in benchmarks if "quant" in bench.extra_info}
    return [Untimed(record) for record in records if full_name(record) not in held]


@dataclass(frozen=True)
class Untimed:
    """A case without times in pytest-benchmark's list: saved as any other, but false, so left out of its table."""

    record: Record
    has_error = False

    def __bool__(self) -> bool:
        return False

    @property
    def fullname(self) -> str:
        return full_name(self.record)

    @property
    def extra_info(self) -> dict[str, Record]:
        return {"quant": self.record}

    def as_dict(self, include_data: bool) -> dict[str, object]:
        return {
            "group": self.record["case"]["model"],
            "name": case_id(self.record),
            "fullname": self.fullname,
            "params": None,
            "param": case_id(self.record),
            "extra_info": self.extra_info,
            "options": {},
            "stats": {"ops": None, "rounds": 0},  # without "ops", pytest-benchmark would not load the file
        }


def _name_as_partial(benchmarks: object) -> None:
    """Save under another name what must not serve as a baseline."""
    for attribute in ("save", "autosave"):
        if getattr(benchmarks, attribute):
            setattr(benchmarks, attribute, getattr(benchmarks, attribute) + PARTIAL)
    if benchmarks.json:
        benchmarks.json = benchmarks.json.with_name(benchmarks.json.name + PARTIAL)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict) -> None:
    """Put what concerns the run as a whole beside the benchmarks."""
    output_json["quant"] = about(config)


def pytest_benchmark_update_commit_info(commit_info: dict) -> None:
    """Add a digest of uncommitted changes, so that two runs of a changed tree can be told apart."""
    if commit_info.get("dirty"):
        commit_info["changes_sha256"] = _digest_of_changes()


def _digest_of_changes() -> str | None:
    try:
        changes = subprocess.run(["git", "diff", "HEAD"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return hashlib.sha256(changes).hexdigest()


def about(config: pytest.Config) -> dict[str, object]:
    """Return what the run as a whole is, in the keys of ``reports/runs.py``."""
    shard = config.option.shard
    return {
        "schema": SCHEMA,
        "selection": {"keyword": config.option.keyword, "markers": config.option.markexpr},
        "settings": {name: config.getoption(name) for name in _SETTINGS},
        **({"shard": {"number": shard[0], "of": shard[1]}} if shard else {}),
        **outcomes(config).as_dict(),
    }


def this_run(config: pytest.Config) -> Run:
    """Return this run as reading its file would."""
    benchmarks = config._benchmarksession
    commit = config.hook.pytest_benchmark_generate_commit_info(config=config)
    records = list(outcomes(config).records.values())
    path = saved_run(config) or Path("this run")
    now = datetime.now(UTC).isoformat()
    return Run(path, records, about(config), benchmarks.get_machine_info(), commit, now)


def saved_run(config: pytest.Config) -> Path | None:
    """Return the file pytest-benchmark wrote in this session, if it did."""
    session = config._benchmarksession
    if session.json:
        return Path(session.json) if session.benchmarks else None
    if not (session.save or session.autosave):
        return None
    files = Path(session.storage.path).rglob("*.json")
    recent = [file for file in files if file.stat().st_mtime >= config.stash[_STARTED]]
    newest = max(recent, key=lambda file: file.stat().st_mtime, default=None)
    return newest and shown(newest)


def shown(path: Path) -> Path:
    """Return a path as users would write it: relative where it is inside the working folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session, state = config._benchmarksession, outcomes(config)
    saved, wanted = saved_run(config), session.save or session.autosave or session.json
    if wanted and not saved and state.planned:
        terminalreporter.write_line("Nothing was saved: no case came to a record.")
    if not state.records:
        return
    if session.disabled:
        terminalreporter.write_line(
            "No times were measured: they need one process, pytest -n 0 without --benchmark-disable."
        )
    if saved and not state.complete:
        why = state.interrupted or f"{len(state.planned.keys() - state.ended)} planned cases did not run"
        terminalreporter.write_line(f"Saved in part as {saved}, which serves no comparison: {why}.")
    elif saved:
        terminalreporter.write_line(f"Saved as {saved}. Show it again: python -m reports table {saved}")
