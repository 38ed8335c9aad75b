"""Trying mutants: each is planted in a copy of the project, and the tests that should notice it are run there.

The copy is taken once for every worker. A mutant is killed where a test fails, not where none can be collected; a text
that is no longer found exactly once is reported as *stale*, so that the list cannot rot unseen.
"""

import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

Outcome = Literal["killed", "survived", "stale", "broken"]

COPIED = ("quant", "fixtures", "benchmarks", "reports", "tests", "conftest.py", "pyproject.toml")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*")
_SECONDS = 300
"""Of processor time, after which a mutant that never ends counts as killed; a busy machine kills none."""
_PASSED, _FAILED = 0, 1
_OUT_OF_TIME = -signal.SIGXCPU


@dataclass(frozen=True)
class Mutant:
    """A small edit of one file: ``before``, found in it exactly once, becomes ``after``; ``tests`` should notice."""

    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.file}: {old} -> {new or 'nothing'}"

    def applied(self, source: str) -> str | None:
        """Return ``source`` with the edit made, or None where its text is not found exactly once."""
        return source.replace(self.before, self.after) if source.count(self.before) == 1 else None


@dataclass(frozen=True)
class Trial:
    """What became of a mutant, or of the tests without any, in so many seconds."""

    mutant: Mutant
    outcome: Outcome
    seconds: float
    output: str = ""


class Project:
    """A copy of the project, in which one set of tests is run at a time."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._folder = folder
        for name in COPIED:
            source = root / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=_LEFT_OUT)
            elif source.exists():
                shutil.copy(source, folder / name)

    def run(self, tests: Sequence[str]) -> tuple[int, str]:
        """Return pytest's exit status and what it printed; one that never ends counts as failed."""
        limited = ["sh", "-c", f'ulimit -S -t {_SECONDS}; exec "$@"', "sh"]
        command = [*limited, sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        # Bytecode is recognized by the second it was written in: an edit of the same length could go unseen.
        environment = os.environ | {
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(self._folder),
        }
        done = subprocess.run(
            command, cwd=self._folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode == _OUT_OF_TIME:
            return _FAILED, f"no end after {_SECONDS} seconds of processor time"
        return done.returncode, done.stdout

    def try_out(self, mutant: Mutant) -> Trial:
        """Plant a mutant, run its tests, and take it out again."""
        path, start = self._folder / mutant.file, time.perf_counter()
        original = path.read_text(encoding="utf-8") if path.exists() else ""
        changed = mutant.applied(original)
        if changed is None:
            return Trial(mutant, "stale", 0.0, f"its text is in {mutant.file} {original.count(mutant.before)} times")
        path.write_text(changed, encoding="utf-8")
        try:
            status, output = self.run(mutant.tests)
        finally:
            path.write_text(original, encoding="utf-8")
        outcomes = {_PASSED: "survived", _FAILED: "killed"}
        return Trial(mutant, outcomes.get(status, "broken"), time.perf_counter() - start, output)


class Known:
    """Mutants killed by an earlier run of the same code and tests: a run that was stopped goes on."""

    def __init__(self, root: Path, path: Path) -> None:
        self._path, self._code, self._killed = path, _digest(root), {}
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            self._killed = dict(entry["killed"]) if entry["code"] == self._code else {}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, or damaged: everything is tried

    def seconds(self, mutant: Mutant) -> float | None:
        return self._killed.get(_key(mutant))

    def add(self, trial: Trial) -> None:
        if trial.outcome != "killed":
            return
        self._killed[_key(trial.mutant)] = round(trial.seconds, 1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"code": self._code, "killed": self._killed}), encoding="utf-8")
        unfinished.replace(self._path)


def try_all(root: Path, mutants: Sequence[Mutant], workers: int, known: Known) -> Iterator[Trial]:
    """Yield what becomes of every mutant, as it is known.

    Raises:
        ValueError: the tests fail without any mutant.
    """
    todo = []
    for mutant in mutants:
        seconds = known.seconds(mutant)
        if seconds is None:
            todo.append(mutant)
        else:
            yield Trial(mutant, "killed", seconds)
    if not todo:
        return
    with TemporaryDirectory() as folder:
        projects: queue.Queue[Project] = queue.Queue()
        for number in range(workers):
            projects.put(Project(root, Path(folder) / str(number)))
        with ThreadPoolExecutor(workers) as pool:
            yield from _tried(pool, projects, todo, known)


def _tried(
    pool: ThreadPoolExecutor, projects: "queue.Queue[Project]", mutants: Sequence[Mutant], known: Known
) -> Iterator[Trial]:
    sound = pool.map(lambda tests: _with_one(projects, lambda p: p.run([tests])), _test_files(mutants))
    for tests, (status, output) in zip(_test_files(mutants), sound, strict=True):
        if status != _PASSED:
            raise ValueError(f"{tests} fails without any mutant:\n{output}")
    for trial in pool.map(lambda mutant: _with_one(projects, lambda p: p.try_out(mutant)), mutants):
        known.add(trial)
        yield trial


def _with_one(projects: "queue.Queue[Project]", use: Callable[[Project], object]) -> object:
    project = projects.get()
    try:
        return use(project)
    finally:
        projects.put(project)


def _test_files(mutants: Sequence[Mutant]) -> list[str]:
    return sorted({tests.partition("::")[0] for mutant in mutants for tests in mutant.tests})


def _key(mutant: Mutant) -> str:
    return hashlib.sha256(repr(mutant).encode()).hexdigest()[:16]


def _digest(root: Path) -> str:
    """Return the digest of all sources that a copy of the project holds."""
    digest = hashlib.sha256()
    for name in COPIED:
        files = sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / name]
        for file in files:
            if file.is_file():
                digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
