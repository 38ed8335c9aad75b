"""Settings of runtimes that were found best on this machine: a file for each machine and set of libraries.

``python -m benchmarks tune`` writes it, ``pytest benchmarks --tuned`` uses it. Another processor, other instruction
sets or another version of a library is another file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock

from benchmarks import environment
from benchmarks.matrix import Case
from fixtures.cache import digest_of
from quant.reading import readable

FOLDER = "tuning"
_VARYING = ("threads", "python")


@dataclass(frozen=True)
class Entry:
    """The settings of one kind of numbers of a model on a backend.

    numbers   family of methods and bits, or a runtime's own quantizer and bits: what decides which kernels run
    settings  those that differ from the defaults; none where the defaults are the best
    speed     time of the defaults over that of these settings, with its 95 % interval
    """

    model: str
    numbers: str
    backend: str
    batch: int
    settings: dict[str, object]
    speed: float
    ci95: tuple[float, float]

    @property
    def subject(self) -> tuple[str, str, str, int]:
        return self.model, self.numbers, self.backend, self.batch


@dataclass(frozen=True)
class Tuning:
    """What is known of this machine."""

    entries: tuple[Entry, ...] = field(default=())

    def of(self, case: Case, batch: int) -> dict[str, object]:
        """Return the settings for a case at ``batch`` samples per call; none where it has not been tuned."""
        subject = case.model, numbers_of(case), case.backend, batch
        return next((dict(entry.settings) for entry in self.entries if entry.subject == subject), {})


def numbers_of(case: Case) -> str:
    """Return what of a case decides its kernels: all methods of a family make the same kind of tables."""
    entry = case.method_entry
    return f"{entry.name if entry.native else entry.family} {case.bits}"


def settings_text(settings: Mapping[str, object]) -> str:
    """``2 threads, memory_pattern off``."""
    words = {True: "on", False: "off"}
    parts = [
        f"{value} thread{'' if value == 1 else 's'}" if name == "threads" else f"{name} {words.get(value, value)}"
        for name, value in settings.items()
    ]
    return ", ".join(parts)


def speed_text(ratio: float, interval: Sequence[float]) -> str:
    """``1.32× (1.29 to 1.35)``."""
    return f"{ratio:.2f}× ({interval[0]:.2f} to {interval[1]:.2f})"


def file_of(cache: Path) -> Path:
    """Return the file of this machine and its libraries in the folder of a cache."""
    known = {name: value for name, value in environment.describe(0).items() if name not in _VARYING}
    return cache / FOLDER / f"{digest_of(known)[:16]}.json"


def read(cache: Path) -> Tuning:
    """Return what is known of this machine.

    Raises:
        ValueError: the file is damaged.
    """
    path = file_of(cache)
    if not path.exists():
        return Tuning()
    with readable(f"{path} is damaged", "delete it and tune again"):
        entries = json.loads(path.read_text())["entries"]
        return Tuning(tuple(Entry(**{**entry, "ci95": tuple(entry["ci95"])}) for entry in entries))


def keep(cache: Path, entry: Entry) -> Path:
    """Write an entry into the file of this machine, in the place of one of the same subject; return the file."""
    path = file_of(cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        others = [one for one in read(cache).entries if one.subject != entry.subject]
        document = {"machine": environment.describe(0), "entries": [asdict(one) for one in (*others, entry)]}
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(document, indent=2) + "\n")
        unfinished.replace(path)
    return path
