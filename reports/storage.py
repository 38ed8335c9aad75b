"""The storage that ``--benchmark-save`` fills: which saves there are, and which of them a name means.

pytest-benchmark keeps a file ``NUMBER_NAME.json`` for each save, numbered from 0001 on in a folder for each kind of
machine: ``.benchmarks/Linux-CPython-3.11-64bit/0003_main.json``.
"""

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reports.runs import Run, RunError, problems_of, read_run, read_valid_run

STORAGE = Path(".benchmarks")
PARTIAL = ".partial"
"""Ends the name of a run that did not come to its end."""
_FILE = re.compile(r"(?P<number>\d{4,})_(?P<name>.+)\.json")
_SHOWN = 8


@dataclass(frozen=True)
class Save:
    """One file of a storage: ``0003_main.json`` is number ``0003`` and called ``main``."""

    path: Path
    number: str
    name: str

    @property
    def machine(self) -> str:
        return self.path.parent.name

    @property
    def partial(self) -> bool:
        return self.name.endswith(PARTIAL)

    def is_called(self, name: str) -> bool:
        machine, _, own = name.rpartition("/")
        known_as = (self.name, self.number, f"{self.number}_{self.name}", self.path.name)
        return machine in ("", self.machine) and own in known_as


def saves(storage: Path = STORAGE) -> list[Save]:
    """Every save of ``storage``, by folder and number; an empty list where there is no such folder."""
    files = [(path, _FILE.fullmatch(path.name)) for path in (*storage.glob("*.json"), *storage.glob("*/*.json"))]
    found = [Save(path, match["number"], match["name"]) for path, match in files if match]
    return sorted(found, key=lambda save: (save.machine, int(save.number), save.name))


def open_run(name: str, storage: Path = STORAGE) -> Run:
    """Read the run that is meant by a path or by the name of a save; a partial run only by its path.

    Raises:
        RunError: there is none, or it cannot be read, or a record of it is not valid.
    """
    if Path(name).is_file():
        return read_valid_run(name)
    try:
        return find_run(name, storage)
    except RunError:
        if Path(name).is_dir():
            raise RunError(f"{name} is a folder: name a file in it, or a save such as main.") from None
        raise


def find_run(name: str | None = None, storage: Path = STORAGE, cpu: str | None = None) -> Run:
    """Read the run to compare with: the newest complete save, preferably of this chip.

    Args:
        name: what the save is called, its number, ``MACHINE/NAME``, or the path of a file; None means any save.
        cpu: the chip as ``machine_info.quant.cpu`` names it; among complete saves one of this chip comes first.

    Raises:
        RunError: there is none, or a file on the way cannot be read, or a record of the run is not valid.
    """
    if name and Path(name).is_file():
        run = read_valid_run(name)
        if not is_complete(run):
            raise RunError(f"{name} is a run that was cut short, which serves no comparison; name a complete one.")
        return run
    everything = saves(storage)
    candidates = [save for save in everything if not save.partial and (name is None or save.is_called(name))]
    run = _choose(candidates, cpu)
    if run is None:
        raise RunError(_no_such_save(name, storage, everything))
    problems = problems_of(run)
    if problems:
        raise RunError(problems[0])
    return run


def is_complete(run: Run) -> bool:
    """Whether every planned case of a run came to its end."""
    return run.quant.get("complete", True)


def _choose(candidates: Sequence[Save], cpu: str | None) -> Run | None:
    newest = None
    for run in _newest_first(candidates):
        if is_complete(run) and run.records:
            if cpu is None or run.machine.get("quant", {}).get("cpu") == cpu:
                return run
            newest = newest or run
    return newest


def _newest_first(candidates: Sequence[Save]) -> Iterator[Run]:
    """Read no more files than are asked for: numbers order a folder, dates the runs of several folders."""
    folders: dict[str, list[Save]] = {}
    for save in reversed(candidates):
        folders.setdefault(save.machine, []).append(save)
    runs = [(read_run(save.path) for save in folder) for folder in folders.values()]
    return heapq.merge(*runs, key=lambda run: run.saved or "", reverse=True)


def _no_such_save(name: str | None, storage: Path, everything: Sequence[Save]) -> str:
    wanted = f"There is no complete save called {name!r} in {storage}" if name else f"{storage} holds no complete save"
    if name and name.endswith(".json"):
        wanted = f"{name} does not exist, and there is no complete save called so in {storage}"
    if name and Path(name).is_dir():
        return f"{wanted}: {name!r} is a folder, so write --benchmark-compare=NAME with the equals sign."
    if not everything:
        return f"{wanted}, nor any other; save a run with --benchmark-save=NAME."
    names = [f"{save.number}_{save.name}" for save in everything]
    more = f" and {len(names) - _SHOWN} older" if len(names) > _SHOWN else ""
    return f"{wanted}; there are {', '.join(names[-_SHOWN:][::-1])}{more}."
