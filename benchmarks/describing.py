"""What a model is made of and what each backend can do with it, before anything is measured.

What a backend can do is asked of the backend: the model is compiled for it in a few schemes, and the share of work on
its kernels for quantized numbers is read from what it made. The cases of a run find these artefacts in the cache.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import product

from tabulate import tabulate

from benchmarks.matrix import Case, matrix
from benchmarks.workshop import Workshop
from quant.architecture import OperatorKind, operator_kinds
from quant.backends import target, targets

PROBES = (("rtn", "int8"), ("rtn", "int4"), ("dynamic", "int8"), ("static_plain", "int8"))
"""Weights alone in 8 and 4 bits, and with activations quantized at run time and in fixed ranges."""
_SHOWN = 8
_LEGEND = (
    "native: share of multiply-accumulates on kernels for quantized numbers; (sim): on float kernels, after "
    "dequantizing; (saved): as the saved model says, whose runtime runs elsewhere."
)


def description(workshop: Workshop, name: str, backends: Sequence[str] | None = None, whole: bool = False) -> str:
    """Return the report on a model: its operators, and what each of ``backends`` quantizes; by default all that run.

    ``whole`` lists every kind of operator, not the most expensive alone.
    """
    prepared = workshop.prepare(name)
    graph = prepared.graph
    kinds = operator_kinds(graph)
    here = [name for name, found in targets().items() if not found.elsewhere() and not found.opt_in]
    chosen = list(backends or here)
    cells, reasons = _backends(workshop, name, chosen)
    operators = f"{sum(kind.count for kind in kinds)} operators of {len(kinds)} kinds"
    parts = [
        f"{name}: {prepared.model.family}, {graph.parameter_count:,} parameters, {operators}",
        _operators(kinds if whole else kinds[:_SHOWN], len(kinds)),
        tabulate(
            [[backend, *row] for backend, row in zip(chosen, cells, strict=True)],
            ["what runs natively", *("-".join(probe) for probe in PROBES)],
            disable_numparse=True,
        ),
        _LEGEND,
        *reasons,
        *_forecasts(workshop, name, chosen),
    ]
    return "\n\n".join(parts[:3]) + "\n\n" + "\n".join(parts[3:])


def _operators(kinds: Sequence[OperatorKind], total: int) -> str:
    rows = [[kind.name, kind.count, *map(_percent, (kind.parameters, kind.work, kind.time))] for kind in kinds]
    if len(kinds) < total:
        rows.append([f"... {total - len(kinds)} more kinds", "", "", "", ""])
    headers = ["operator", "count", "parameters", "multiplications", "time"]
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", *["right"] * 4))


def _backends(workshop: Workshop, name: str, backends: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Return a row of cells for each backend, and the sentences that explain some of them."""
    exist, left_out = set(matrix()[0]), {entry.case: entry.reason for entry in matrix()[1]}
    rows: list[list[str]] = []
    reasons: dict[str, list[str]] = {}
    for backend in backends:
        missing = target(backend).missing()
        row = []
        for method, bits in PROBES:
            case = Case(name, method, bits, backend)
            if missing:
                cell, reason = "-", f"not installed: {missing}"
            elif case not in exist:
                cell, reason = "-", left_out[case]
            else:
                workshop.report(f"compiling {case}")
                cell, reason = _probed(workshop, case)
            row.append(cell)
            if reason and backend not in reasons.setdefault(reason, []):
                reasons[reason].append(backend)
        rows.append(row)
    return rows, [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _forecasts(workshop: Workshop, name: str, backends: Sequence[str]) -> list[str]:
    """Return sentences on where a device is expected to run the model, from backends that know only what was read."""
    sentences: dict[str, None] = {}
    for backend, probe in product(backends, (PROBES[0], PROBES[-1])):  # with weights alone, and in integers
        case = Case(name, *probe, backend)
        if target(backend).missing() or case not in set(matrix()[0]):
            continue
        forecast = getattr(case.target.load(), "forecast", None)
        if forecast:
            calibration = workshop.calibration(name)
            with suppress(ValueError, RuntimeError):  # the table says so
                artifact = workshop.compile(case, workshop.quantize(case, calibration), calibration)
                sentences |= dict.fromkeys(forecast(artifact.entry.path))
    return list(sentences)


def _probed(workshop: Workshop, case: Case) -> tuple[str, str | None]:
    """Return what a backend made of a case: the share on native kernels, or that it failed and why."""
    calibration = workshop.calibration(case.model)
    try:
        tables = workshop.quantize(case, calibration)
        executable = workshop.compile(case, tables, calibration).executable
        shares = executable.coverage()
    except (ValueError, RuntimeError) as error:
        return "fails", _sentence(error)
    parts = [_percent(shares["operators_native"])]
    if executable.evidence == "evaluated":
        parts.append("(saved)")
    if shares["operators_simulated"]:
        parts.append(f"({_percent(shares['operators_simulated'])} sim)")
    return " ".join(parts), None


def _sentence(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
