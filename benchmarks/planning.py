"""What is said of a run before its first case: how many there are, how long they may take, what to beware of."""

from collections.abc import Mapping

from benchmarks import environment
from benchmarks.durations import DEFAULT_SECONDS
from benchmarks.matrix import Case
from reports.words import counted

NO_CASE = (
    "No case is selected: they are called model-method-bits-backend, such as minilm-rtn-int4-onnxruntime; "
    "--list-unsupported says which do not exist, and why."
)


def plan(cases: Mapping[str, object], known: Mapping[str, float]) -> list[str]:
    """Return the sentences on cases by name, at least one; ``known`` are the seconds of those that ran before."""
    expected = sum(known.get(name, DEFAULT_SECONDS) for name in cases)
    models = sorted({case.model for case in cases.values()})
    train = sum(name not in known and _trains(case) for name, case in cases.items())
    first = f"; {train} train first, for minutes each" if train else ""
    planned = (
        f"{counted(len(cases), 'case')} of {counted(len(models), 'model')} ({', '.join(models)}), "
        f"about {max(1, round(expected / 60))} min{first}. "
        "Narrow with -k 'minilm and int4' or -m \"case(backend='mlx')\"; -m full runs every case."
    )
    warning = environment.saturation_warning(case for case in cases.values() if isinstance(case, Case))
    return [planned, *([f"Warning: {warning}"] if warning else [])]


def _trains(case: object) -> bool:
    return isinstance(case, Case) and case.method_entry.trains
