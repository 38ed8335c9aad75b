"""The record: what one case measured, in one JSON schema.

A record lives in ``extra_info["quant"]`` of one benchmark in pytest-benchmark's own JSON, so every tool that reads such
a file still does. Times are in seconds, sizes in bytes; shares lie between 0 and 1; ``accuracy.value``, ``delta`` and
``ci95`` are in the metric's own unit (a drop of one point is -0.01). A missing figure is ``null``, and its section says
why in ``reason``; a section nothing could be measured of is ``{"reason": "..."}`` alone. Users may add keys anywhere.
"""

import base64
import binascii
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

SCHEMA = 1
KINDS = ("inference", "quantize", "generate", "peer")
EVIDENCE = ("measured", "evaluated", "simulated")
VERDICTS = ("pass", "regressed", "inconclusive")

Record = dict[str, Any]
# A check returns what is wrong with a value, worded to follow the value's path, or None.
Check = Callable[[Any], str | None]

_PACKED = {"float32:": "<f4", "int32:": "<i4", "uint32:": "<u4"}
PACKED_FIDELITY = ("agreement", "cosine", "kl", "squared_error", "squared_norm")
PACKED_SCORES = ("packed", "weights", "baseline", "samples", "clusters", *PACKED_FIDELITY)
_COUNTED = ("scores", "accuracy")
# A cosine or a share summed in single precision may end a little above one.
_ROUNDING = 1e-6


def case_id(record: Record) -> str:
    """The id pytest shows and ``-k`` matches, such as ``minilm-gptq-int4-onnxruntime``."""
    case = record["case"]
    return "-".join(str(case[axis]) for axis in ("model", "method", "bits", "backend"))


def full_name(record: Record) -> str:
    """``kind:case``, the name under which two runs are compared."""
    return f"{record['kind']}:{case_id(record)}"


def record_name(record: Record) -> str:
    """What rows and lists call a case: its id, preceded by its kind if that is not inference."""
    return case_id(record) if record["kind"] == "inference" else full_name(record)


def plain(value: Any) -> Any:
    """Convert to the types JSON has: numpy values to Python's, NaN and infinities to None, tuples to lists.

    Raises:
        TypeError: for an object that has no plain form, naming its type.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | os.PathLike):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if callable(getattr(value, "tolist", None)):
        return plain(value.tolist())
    raise TypeError(f"A record cannot hold a {type(value).__name__}; give it a number, text, list or dict.")


def validate(record: Any) -> list[str]:
    """Every problem of a record, one sentence each, beginning with its path; an empty list means a good record."""
    if not isinstance(record, dict):
        return [f"The record is {type_name(record)}, not an object."]
    newer = newer_schema(record)
    if newer:
        return [newer]
    problems = [] if _is_plain(record) else _impurities(record, "")
    for name, check in (("schema", _schema), ("kind", _one_of(*KINDS)), ("evidence", _one_of(*EVIDENCE))):
        problems += _problems(name, check, record)
    optional = {name: fields for name, fields in OPTIONAL.items() if name in record}
    for name, fields in {**SECTIONS, **OF_KIND.get(str(record.get("kind")), {}), **optional}.items():
        problems += _section_problems(name, fields, record)
    return problems + _contradictions(record)


def newer_schema(holder: Record) -> str | None:
    """What is wrong where a record, or a run, was written with a schema that this version cannot read."""
    schema = holder.get("schema")
    if _count(schema) is not None or schema <= SCHEMA:
        return None
    return f"schema is {schema}, written by a newer version; this one reads {SCHEMA}: update quant-benchmarks."


def type_name(value: Any) -> str:
    """What JSON calls the type of a value, with its article."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else f"a {type(value).__name__}")


def pack_outcomes(outcomes: "numpy.ndarray") -> str:
    """Pack per-sample outcomes [n] into text: right-or-wrong (bool) a bit each, whole numbers 32, others as float32."""
    import numpy

    outcomes = numpy.asarray(outcomes)
    if outcomes.ndim != 1:
        raise ValueError(f"Per-sample outcomes must have one dimension, not shape {outcomes.shape}.")
    if outcomes.dtype == numpy.bool_:
        return base64.b64encode(numpy.packbits(outcomes).tobytes()).decode("ascii")
    tag = {"u": "uint32:", "i": "int32:"}.get(outcomes.dtype.kind, "float32:")
    return tag + base64.b64encode(outcomes.astype(_PACKED[tag]).tobytes()).decode("ascii")


def unpack_outcomes(text: str, n: int) -> "numpy.ndarray":
    """The ``n`` outcomes of ``pack_outcomes``: bool [n], or float32, int32 or uint32 [n] where they were numbers.

    Raises:
        ValueError: when the text is damaged or holds another number of samples.
    """
    import numpy

    tag, data = _unpacked_bytes(text, n)
    if tag:
        packed = numpy.frombuffer(data, _PACKED[tag])
        return packed.astype(packed.dtype.newbyteorder("="))
    return numpy.unpackbits(numpy.frombuffer(data, numpy.uint8), count=n).astype(bool)


def _unpacked_bytes(text: str, n: int) -> tuple[str, bytes]:
    """The type of packed outcomes and their bytes; a ValueError where these are not those of ``n`` samples."""
    tag = next((tag for tag in _PACKED if text.startswith(tag)), "")
    try:
        data = base64.b64decode(text.removeprefix(tag), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"Packed outcomes are not base64 text ({error}); measure the run again.") from None
    expected = 4 * n if tag else math.ceil(n / 8)
    if len(data) != expected:
        raise ValueError(f"Packed outcomes hold {len(data)} bytes where {n} samples need {expected}.")
    return tag, data


def _show(value: Any) -> str:
    return "null" if value is None else repr(value)[:60]


def _schema(value: Any) -> str | None:
    return None if _count(value) is None and value == SCHEMA else f"is {_show(value)}, not {SCHEMA}"


def _number(value: Any) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if number else f"is {type_name(value)}, not a number"


def _at_least(lowest: float, highest: float = math.inf) -> Check:
    def check(value: Any) -> str | None:
        # A comparison with NaN is false, and NaN is reported once, for the whole record.
        outside = _number(value) is None and (value < lowest - _ROUNDING or value > highest + _ROUNDING)
        limit = f"below {lowest}" if highest == math.inf else f"not between {lowest} and {highest}"
        return f"is {value}, {limit}" if outside else _number(value)

    return check


def _count(value: Any) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return None if whole and value >= 0 else f"is {_show(value)}, not a whole number of at least 0"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else f"is {_show(value)}, not text"


def _axis(value: Any) -> str | None:
    if isinstance(value, str) and "-" in value:
        return f"is {value!r}, but a hyphen only separates the axes of a case id"
    return _text(value)


def _sha256(value: Any) -> str | None:
    good = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
    return None if good else f"is {_show(value)}, not 64 hexadecimal digits"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"is {_show(value)}, not true or false"


def _one_of(*words: str) -> Check:
    return lambda value: None if value in words else f"is {_show(value)}, not one of {', '.join(words)}"


def _interval(value: Any) -> str | None:
    if not isinstance(value, list) or len(value) != 2 or any(_number(bound) for bound in value):
        return f"is {_show(value)}, not [low, high]"
    return f"is {value}, its low end above its high end" if value[0] > value[1] else None


_share = _at_least(0, 1)
_non_negative = _at_least(0)

SECTIONS: dict[str, dict[str, Check | dict[str, Check]]] = {
    "case": {"model": _axis, "method": _axis, "bits": _axis, "backend": _axis},
    "model": {"family": _text, "parameters": _count, "weights_sha256": _sha256},
    "scheme": {},
    "artifact": {"path": _text, "sha256": _sha256},
    "accuracy": {
        "metric": _text,
        "better": _one_of("higher", "lower"),
        "n": _count,
        "baseline": _number,
        "value": _number,
        "delta": _number,
        "ci95": _interval,
        "p_value": _share,
        "flips": {"regressed": _count, "fixed": _count},
        "verdict": _one_of(*VERDICTS),
    },
    "fidelity": {
        "error": _non_negative,
        "sqnr_db": _number,
        "cosine": _at_least(-1, 1),
        "agreement": _share,
        "kl": _number,
    },
    "parity": {"error": _non_negative},
    "size": {"bytes": _count, "baseline_bytes": _count, "ratio": _non_negative, "bits_per_weight": _non_negative},
    "coverage": {"parameters_quantized": _share, "operators_native": _share, "operators_simulated": _share},
    "cost": {"seconds": _non_negative, "peak_bytes": _count, "cached": _flag},
    "speed": {
        "protocol": _text,
        "rounds": _count,
        "refused": _flag,
        "ratio": _non_negative,
        "ci95": _interval,
        "p50": _non_negative,
        "p90": _non_negative,
        "p99": _non_negative,
        "baseline_p50": _non_negative,
        "null": {"ratio": _non_negative, "ci95": _interval},
        "load": {"others": _non_negative, "free": _count, "stolen": _non_negative},
        "samples": {"rounds": _count, "baseline": _text, "variant": _text},
    },
    "memory": {
        "peak_bytes": _count,
        "growth_bytes": _count,
        "baseline_peak_bytes": _count,
        "baseline_growth_bytes": _count,
        "ratio": _non_negative,
    },
    "scores": {"dataset_sha256": _sha256, "packed": _text},
}


OF_KIND: dict[str, dict[str, dict[str, Check | dict[str, Check]]]] = {
    "generate": {
        "generation": {"prompt_tokens": _count, "new_tokens": _count, "cache_bytes": _count},
        "prefill": {
            **{name: SECTIONS["speed"][name] for name in ("rounds", "refused", "ratio", "ci95", "p50", "baseline_p50")},
            "tokens_per_second": _non_negative,
        },
    }
}
"""The sections that records of one kind alone have."""

OPTIONAL: dict[str, dict[str, Check | dict[str, Check]]] = {
    "adaptive": {
        "first": _text,
        "stronger": _text,
        "sureness": _text,
        "threshold": _number,
        "max_drop": _share,
        "confidence": _share,
        "sources": _count,
        "lost_when_certified": _share,
        "answers": _count,
        "escalated": _share,
        "difference": _number,
        "ci95": _interval,
        "resplits": {"count": _count, "held": _count, "largest_loss": _number},
        "expected_seconds": _non_negative,
        "worst_seconds": _non_negative,
    }
}
"""The sections that some records have: those of cascades."""


def _section_problems(name: str, fields: dict, record: Record) -> list[str]:
    section = record.get(name)
    if not isinstance(section, dict):
        missing = "is missing" if name not in record else f"is {type_name(section)}, not an object"
        return [f'{name} {missing}; a section without figures is {{"reason": "..."}}.']
    reason = section.get("reason")
    if reason is not None and _text(reason):
        return [f"{name}.reason {_text(reason)}."]
    # The case names the record, so no reason excuses a missing part of it.
    if reason and name != "case" and not any(key in section for key in fields):
        return []
    return [problem for key, check in fields.items() for problem in _problems(f"{name}.{key}", check, section, name)]


def _problems(path: str, check: Check | dict[str, Check], holder: dict, section: str = "") -> list[str]:
    key = path.rpartition(".")[2]
    if key not in holder:
        return [f"{path} is missing."]
    value = holder[key]
    if value is None and section not in ("", "case"):
        return [] if holder.get("reason") else [f"{path} is null, but {section}.reason does not say why."]
    if isinstance(check, dict):
        if not isinstance(value, dict):
            return [f"{path} is {type_name(value)}, not an object."]
        return [problem for inner in check for problem in _problems(f"{path}.{inner}", check[inner], value)]
    problem = check(value)
    return [f"{path} {problem}."] if problem else []


def _is_plain(value: Any) -> bool:
    """Whether :func:`_impurities` finds none, which most records are free of: this one is quick."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if kind is list:
        return all(map(_is_plain, value))
    return math.isfinite(value) if kind is float else value is None or kind in (str, int, bool)


def _impurities(value: Any, path: str) -> list[str]:
    """What JSON cannot hold: NaN, infinities, and types that are not plain, wherever they stand."""
    if isinstance(value, dict):
        wrong = [f"{path or 'The record'} has the key {key!r}, not text." for key in value if not isinstance(key, str)]
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
        return wrong + [problem for inner, item in items for problem in _impurities(item, inner)]
    if type(value) is list:
        return [problem for index, item in enumerate(value) for problem in _impurities(item, f"{path}[{index}]")]
    if type(value) is float and not math.isfinite(value):
        return [f"{path} is {value}; a missing figure is null with a reason."]
    if value is None or type(value) in (bool, int, float, str):
        return []
    return [f"{path} is a {type(value).__module__}.{type(value).__name__}, not a plain JSON type; use plain()."]


def _contradictions(record: Record) -> list[str]:
    """Figures that deny each other: such a record mixes two units, two directions, or a figure with its refusal."""
    problems = []
    baseline, value, delta = _figures(record, "accuracy", "baseline", "value", "delta")
    if delta is not None and not math.isclose(delta, value - baseline, rel_tol=1e-4, abs_tol=1e-6):
        problems.append(f"accuracy.delta is {delta}, but value - baseline is {value - baseline:.6g}.")
    size, baseline, ratio = _figures(record, "size", "bytes", "baseline_bytes", "ratio")
    if ratio is not None and baseline and not math.isclose(ratio, size / baseline, rel_tol=1e-2):
        problems.append(f"size.ratio is {ratio}, but bytes / baseline_bytes is {size / baseline:.6g}.")
    (ratio,) = _figures(record, "speed", "ratio")
    if ratio is not None and record["speed"].get("refused") is True:
        problems.append(f"speed.refused is true, but speed.ratio is {ratio}.")
    return problems + _damaged_scores(record)


def _damaged_scores(record: Record) -> list[str]:
    """Packed scores that do not hold as many samples as the record says it judged."""
    section, accuracy = (record.get(name) if isinstance(record.get(name), dict) else {} for name in _COUNTED)
    n = section.get("n", accuracy.get("n"))
    n_fidelity = section.get("n_fidelity", n)
    if _count(n) is None and _count(n_fidelity):
        return [f"scores.n_fidelity {_count(n_fidelity)}."]
    problems = []
    for key in PACKED_SCORES if _count(n) is None else ():
        try:
            if isinstance(section.get(key), str):
                _unpacked_bytes(section[key], n_fidelity if key in PACKED_FIDELITY else n)
        except ValueError as error:
            problems.append(f"scores.{key}: {error}")
    return problems


def _figures(record: Record, section: str, *names: str) -> tuple:
    """The named figures where all of them are finite numbers, else a None for each."""
    holder = record.get(section)
    figures = tuple(holder.get(name) if isinstance(holder, dict) else None for name in names)
    usable = all(_number(figure) is None and math.isfinite(figure) for figure in figures)
    return figures if usable else (None,) * len(names)
