"""How the figures of each case moved over saved runs, machine by machine, and in which save they changed."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from reports.changes import FALSE_ALARMS, FEWEST, change_points
from reports.chips import machine
from reports.figures import figure, figure_text, higher_is_better
from reports.machines import differences, environment_of
from reports.record import Record, record_name
from reports.runs import Run, RunError, read_valid_run
from reports.storage import PARTIAL, STORAGE, open_run

# Figures that are compared by ratio, so noise is even and a change reads in per cent.
_RATIOS = {"speed", "time", "size", "cost", "memory", "error", "bits_per_weight"}
_SAMPLED = {"accuracy", "agreement", "error", "sqnr_db", "cosine", "kl"}
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Change:
    """A new level of a series: the save that began it, the levels around it, and what else changed with it.

    index   of the first save of the new level
    better  whether the new level is the better one
    beside  what of the environment changed in the same save
    """

    index: int
    save: str
    before: float
    after: float
    better: bool
    beside: list[str]


@dataclass(frozen=True)
class Series:
    """One metric of one case on one machine (and on one data set, where it depends on it), in order of time."""

    case: str
    metric: str
    machine: str
    saves: list[str]
    values: list[float]
    changes: list[Change]
    last: Record

    def text(self, value: float) -> str:
        return figure_text(self.last, self.metric, value)

    def step_text(self, change: Change) -> str:
        """``1.87× → 2.10×``."""
        return f"{self.text(change.before)} → {self.text(change.after)}"


def saved_runs(names: Iterable[str]) -> tuple[list[Run], list[str]]:
    """The runs of these names, and of all files below these folders, by time; and why files of a folder were left out.

    Raises:
        RunError: a run named itself cannot be used, or nothing was found.
    """
    runs, left_out = [], []
    for name in names:
        if not Path(name).is_dir() and name != str(STORAGE):
            runs.append(open_run(name))
            continue
        for file in sorted(Path(name).rglob("*.json")):
            if file.stem.endswith(PARTIAL):
                continue
            try:
                runs.append(read_valid_run(file))
            except RunError as error:
                left_out.append(str(error))
    if not runs:
        raise RunError(f"No saved run in {', '.join(names)}; save one with --benchmark-save=NAME.")
    return sorted(runs, key=lambda run: (run.saved or "", str(run.path))), left_out


def histories(runs: Sequence[Run], metric: str, pattern: str = "*") -> list[Series]:
    """A series for every machine and case whose name matches the shell pattern, by machine, then by case.

    A new evaluation set begins a new series of what is measured on it.
    """
    points: dict[tuple, list[tuple[Run, Record, float]]] = {}
    for run in runs:
        for record in run.records:
            name, found = record_name(record), figure(record, metric)
            if found is not None and fnmatchcase(name, pattern):
                points.setdefault((machine(run, record), name, _data(record, metric)), []).append(
                    (run, record, found.value)
                )
    return [_series(key, metric, points[key]) for key in sorted(points, key=str)]


def history_text(series: Sequence[Series]) -> str:
    """A sparkline a case under the name of its machine, each change named by its save on a line of its own."""
    lines = []
    width = max((len(one.case) for one in series), default=0)
    long = max((len(one.values) for one in series), default=0)
    for place in dict.fromkeys(one.machine for one in series):
        here = [one for one in series if one.machine == place]
        lines += ["", place]
        for one in here:
            lines.append(f"  {one.case:{width}}  {sparkline(one.values):{long}}  {one.text(one.values[-1])}")
            for change in one.changes:
                beside = f"; with it {', '.join(change.beside)}" if change.beside else ""
                word = "better" if change.better else "worse"
                lines.append(f"    {change.save}: {one.step_text(change)}, {word}{beside}")
    lines += ["", *changes_by_save(series)] if any(one.changes for one in series) else []
    judged = sum(len(one.values) >= FEWEST for one in series)
    chance = f"{FALSE_ALARMS:.0%} of series without a change show one by chance"
    lines += ["", f"{judged} of {len(series)} series have the {FEWEST} saves that a change needs; {chance}."]
    return "\n".join(lines[1:])


def changes_by_save(series: Sequence[Series]) -> list[str]:
    """A line for each save that began a new level, the latest first: ``0006_main: speed worse in 33 cases``."""
    counts: dict[str, Counter] = {}
    for one in series:
        for change in one.changes:
            kind = f"{one.metric} {'better' if change.better else 'worse'}"
            counts.setdefault(change.save, Counter())[kind] += 1
    order = {save: index for one in series for index, save in enumerate(one.saves)}
    return [
        f"{save}: " + ", ".join(f"{kind} in {n} case{'' if n == 1 else 's'}" for kind, n in counts[save].most_common())
        for save in sorted(counts, key=order.__getitem__, reverse=True)
    ]


def sparkline(values: Sequence[float]) -> str:
    """Bars from the lowest to the highest value; middle bars where all are equal."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return _BARS[3] * len(values)
    return "".join(_BARS[round((len(_BARS) - 1) * (value - low) / (high - low))] for value in values)


def save_name(run: Run) -> str:
    """``0007_main (1a2b3c4)``; a ``+`` after a commit with local changes."""
    commit = str(run.commit.get("id") or "")[:7]
    return f"{run.path.stem} ({commit}{'+' if run.commit.get('dirty') else ''})" if commit else run.path.stem


def _data(record: Record, metric: str) -> str:
    return str(record["scores"].get("dataset_sha256")) if metric in _SAMPLED else ""


def _series(key: tuple, metric: str, points: list[tuple[Run, Record, float]]) -> Series:
    place, case, _ = key
    values = [value for _, _, value in points]
    by_ratio = metric in _RATIOS and min(values) > 0
    scaled = [math.log(value) for value in values] if by_ratio else values
    starts = change_points(scaled)
    levels = [_mean(scaled[start:end], by_ratio) for start, end in zip([0, *starts], [*starts, None], strict=True)]
    last = points[-1][1]
    changes = [
        Change(
            index=start,
            save=save_name(points[start][0]),
            before=before,
            after=after,
            better=(after > before) == higher_is_better(last, metric),
            beside=differences(*(environment_of(*points[index][:2]) for index in (start, start - 1))),
        )
        for start, before, after in zip(starts, levels[:-1], levels[1:], strict=True)
    ]
    return Series(case, metric, place, [save_name(run) for run, _, _ in points], values, changes, last)


def _mean(values: list[float], by_ratio: bool) -> float:
    mean = sum(values) / len(values)
    return math.exp(mean) if by_ratio else mean
