"""Which backend to run a model on, by what saved runs of one machine measured."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from reports.machines import Environment, differences
from reports.recommendation import Candidate, best, recommend
from reports.record import full_name
from reports.requirements import Requirements
from reports.runs import Run, read_run
from reports.storage import is_complete, saves

_SAME = ("cpu", "isa", "isa_caps", "huge_pages", "threads", "system")
"""What of an environment makes times those of the same machine; versions of libraries may differ."""


def best_of_each_model(runs: Iterable[Run], requirements: Requirements) -> dict[str, Candidate]:
    """Return the case to ship of every model that has one, of all backends, as ``reports recommend`` chooses it.

    Where several runs measured a case the last counts.
    """
    newest = {full_name(record): record for run in sorted(runs, key=_saved) for record in run.records}
    found: dict[str, list[Candidate]] = {}
    for one in recommend(Run(Path(), list(newest.values())), requirements):
        if one.best:
            found.setdefault(one.case["model"], []).append(one.best)
    return {model: best(candidates) for model, candidates in found.items()}


def runs_of_machine(storage: Path, here: Environment) -> Sequence[Run]:
    """Read the complete saves of a storage that were made on the machine of an environment.

    Raises:
        RunError: one of them cannot be read.
    """
    runs = [read_run(save.path) for save in saves(storage) if not save.partial]
    return [run for run in runs if is_complete(run) and not differences(run.machine.get("quant", {}), here, _SAME)]


def _saved(run: Run) -> str:
    return run.saved or ""
