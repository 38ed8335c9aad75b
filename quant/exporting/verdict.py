"""Whether an artefact computes what its tables mean: the limits, and one sentence for each that is broken.

Without quantized activations an artefact repeats the simulation's arithmetic in another order, and differs by the
rounding of floats. With them a value near the border of two codes may get either, and what follows differs by a step of
the grid: how far that goes shows in a second simulation whose parameters differ by a rounding (``floor``).
"""

import math

import numpy as np

from quant.exporting.checking import Found
from quant.exporting.child import digest_of_codes
from quant.exporting.expected import Expected

LEAST_SQNR = 40.0
"""In dB, where nothing but the order of additions, and halves for scales, may differ: 1 % of the outputs' norm."""
LEAST_AGREEMENT = 0.99
FLOORS = 2.0
"""By how many times the floor an artefact may differ where activations are quantized."""


def verdict(expected: Expected, found: Found, memory_limit: int | None) -> dict[str, object]:
    """Return the findings about an artefact, in plain JSON types; ``reasons`` say why it is rejected, if it is."""
    findings: dict[str, object] = {"checked_by": found.checked_by, "evidence": found.evidence}
    if found.outputs is None:
        return {"verdict": "rejected", "reasons": [f"it does not run by itself: {found.failure}"], **findings}
    reasons, shape = [], expected.outputs.shape[1:]
    if found.outputs.shape[1:] != shape:
        reasons.append(f"its outputs have the shape {found.outputs.shape[1:]} a sample, the simulation's {shape}")
    elif np.isfinite(found.outputs).all():
        findings["parity"] = parity(expected, found.outputs)
        reasons += _unlike(findings["parity"])
        if expected.metric:
            findings["metric"] = expected.metric(expected.outputs[: len(found.outputs)], found.outputs)
    else:
        reasons.append("its outputs hold NaN or infinity")
    if found.readers:
        findings["readers"] = {}
    for name, outputs in found.readers.items():
        findings["readers"][name], wrong = _reader(expected, outputs)
        reasons += [f"in {name} {reason}" for reason in wrong]
    findings["codes"] = _codes(expected, found)
    if findings["codes"]["different"]:
        reasons.append(f"the codes of {findings['codes']['different'][0]!r} are not the table's")
    findings["memory"] = {"peak_bytes": found.peak_bytes if found.evidence == "measured" else None}
    if memory_limit is not None:
        findings["memory"]["limit_bytes"] = memory_limit
        if found.peak_bytes > memory_limit:
            reasons.append(f"it takes {_megabytes(found.peak_bytes)}, more than the {_megabytes(memory_limit)} allowed")
    return {"verdict": "rejected" if reasons else "pass", "reasons": reasons, **findings}


def parity(expected: Expected, outputs: np.ndarray) -> dict[str, object]:
    """Return how outputs [n, ...] compare with the simulation on the same samples.

    error      L2 norm of the difference over that of the simulation's outputs, all samples stacked
    sqnr_db    -20 log10(error); None where they are equal
    agreement  share of equal best classes; None where the outputs say nothing of classes
    floor      error and agreement of a simulation that differs by a rounding; None without quantized activations
    """
    simulated = expected.outputs[: len(outputs)]
    floor = None
    if expected.perturbed is not None:
        perturbed = expected.perturbed[: len(outputs)]
        agreement = _agreement(expected, perturbed, simulated)
        floor = {"error": _error(perturbed, simulated), "agreement": agreement}
    error = _error(outputs, simulated)
    return {
        "samples": len(outputs),
        "error": error,
        "sqnr_db": -20 * math.log10(error) if error else None,
        "agreement": _agreement(expected, outputs, simulated),
        "floor": floor,
    }


def _unlike(parity: dict) -> list[str]:
    """Return what is wrong with the outputs."""
    error, agreement, floor = parity["error"], parity["agreement"], parity["floor"] or {"error": 0, "agreement": 1}
    reasons = []
    if error > max(10 ** (-LEAST_SQNR / 20), FLOORS * floor["error"]):
        reasons.append(f"its outputs differ from the simulation's by {100 * error:.2g} % of their norm")
    least = LEAST_AGREEMENT - FLOORS * (1 - floor["agreement"]) if agreement is not None else 0
    if agreement is not None and agreement < least:
        reasons.append(f"it agrees with the simulation on {100 * agreement:.1f} % of the best classes")
    return reasons


def _reader(expected: Expected, outputs: np.ndarray | str) -> tuple[dict[str, object], list[str]]:
    """Return how the outputs of another reader compare, and what is wrong with them.

    One that does not take the file says nothing against the file: it may lack an operator.
    """
    if isinstance(outputs, str):
        return {"reason": outputs}, []
    if outputs.shape[1:] != expected.outputs.shape[1:] or not np.isfinite(outputs).all():
        reason = f"its outputs are not finite ones of the shape {expected.outputs.shape[1:]}"
        return {"reason": reason}, [reason]
    found = parity(expected, outputs)
    return found, _unlike(found)


def _codes(expected: Expected, found: Found) -> dict[str, object]:
    """Return how many weights have codes, how many of them are the same when read back, and which are not."""
    weights = expected.quantized.weights
    own = {name: digest_of_codes(weight.codes.numpy()) for name, weight in weights.items()}
    return {
        "weights": len(own),
        "identical": sum(found.codes.get(name) == digest for name, digest in own.items()),
        "different": [name for name, digest in found.codes.items() if own[name] != digest],
    }


def _error(outputs: np.ndarray, simulated: np.ndarray) -> float:
    difference, norm = (
        np.linalg.norm(outputs.astype(np.float64) - simulated),
        np.linalg.norm(simulated.astype(np.float64)),
    )
    return float(difference / norm) if norm else float(difference > 0)


def _agreement(expected: Expected, outputs: np.ndarray, simulated: np.ndarray) -> float | None:
    if expected.scores is None or outputs.ndim < 2 or outputs.shape[-1] < 2:
        return None
    return float((expected.scores(outputs).argmax(-1) == expected.scores(simulated).argmax(-1)).mean())


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
