"""Comparisons by the hundred, and the rates that come of them with their intervals."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from reports.judgement import Judgement, judge
from reports.limits import parse_limit
from reports.runs import Run


@dataclass(frozen=True)
class Rate:
    """How often something happened; ``low`` and ``high`` are one-sided 95 % bounds (Clopper and Pearson 1934)."""

    name: str
    hits: int
    trials: int

    @property
    def low(self) -> float:
        from scipy.stats import beta

        return float(beta.ppf(0.05, self.hits, self.trials - self.hits + 1)) if self.hits else 0.0

    @property
    def high(self) -> float:
        from scipy.stats import beta

        return float(beta.ppf(0.95, self.hits + 1, self.trials - self.hits)) if self.hits < self.trials else 1.0

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "low": self.low, "high": self.high}


def false_alarms(name: str, comparisons: Iterable[tuple[Run, Run]], limits: Sequence[str]) -> Rate:
    """Return how many runs, each with all its cases under all limits, were called a regression."""
    return _rate(name, comparisons, limits, lambda judgement: judgement.verdict == "regressed")


def detections(name: str, comparisons: Iterable[tuple[Run, Run]], limits: Sequence[str]) -> Rate:
    """Return how many runs with a planted fault were called a regression, for a loss and for nothing else."""
    return _rate(name, comparisons, limits, lambda judgement: any(f.verdict == "regressed" for f in judgement.findings))


def refusals(name: str, runs: Iterable[Run]) -> Rate:
    """Return how many ratios were refused in the runs, because of the load or a failed null."""
    sections = [record["speed"] for run in runs for record in run.records]
    timed = [section for section in sections if section.get("refused") or section.get("ratio") is not None]
    return Rate(name, sum(bool(section.get("refused")) for section in timed), len(timed))


def _rate(
    name: str, comparisons: Iterable[tuple[Run, Run]], limits: Sequence[str], happened: Callable[[Judgement], bool]
) -> Rate:
    parsed = [parse_limit(limit) for limit in limits]
    verdicts = [happened(judge(base, head, parsed)) for base, head in comparisons]
    return Rate(name, sum(verdicts), len(verdicts))
