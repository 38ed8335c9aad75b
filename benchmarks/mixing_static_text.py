"""What was chosen within a latency, in words and as the file of a recipe."""

from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from benchmarks.mixing_static import Made, StaticMixer
from benchmarks.mixing_text import artifact_document
from quant.methods.mixed_static import FORMATS, foreseen, problem
from quant.mixed import greedy
from reports.record import plain
from reports.tables import three_digits


def explanation(mixer: StaticMixer, made: Made) -> str:
    """Say what was chosen, what it takes and is foreseen to lose, and why each operator has the format it has."""
    choice = made.choice
    text = (
        f"{len(choice.wide)} of {len(mixer.errors)} operators left wide. A call takes {_time(made.seconds)} "
        f"({_time(choice.seconds)} foreseen) and float's {_time(made.float_seconds)}, "
        f"{made.float_seconds / made.seconds:.2f} times as long, taken in turns. "
        f"The error of the outputs is foreseen to be {100 * choice.error:.2g} %; {_beside_others(mixer, made)}."
    )
    rows = [
        (
            row["name"],
            row["format"],
            *(three_digits(1e3 * seconds) for seconds in row["seconds"].values()),
            f"{100 * row['share']:.1f} %",
            row["why"],
        )
        for row in operators(mixer, made)
    ]
    headers = ("operator", "format", *(f"{word}, ms" for word in FORMATS), "error", "why")
    align = ("left", "left", "right", "right", "right", "left")
    return text + "\n\n" + tabulate(rows, headers, disable_numparse=True, colalign=align)


def operators(mixer: StaticMixer, made: Made) -> list[dict[str, object]]:
    """Return of each operator the format chosen and why, its seconds by format, and its share of all squared errors."""
    program, total = problem(mixer.errors, mixer.latency), sum(mixer.errors.values()) or 1.0
    choices = np.array([int(name in made.choice.wide) for name in mixer.errors])
    found = []
    for place, (name, error) in enumerate(mixer.errors.items()):
        other = choices.copy()
        other[place] = 1 - choices[place]
        added = program.total_cost(other) - program.total_cost(choices)
        found.append(
            {
                "name": name,
                "format": FORMATS[choices[place]],
                "seconds": dict(zip(FORMATS, program.cost[place].tolist(), strict=True)),
                "share": error / total,
                "why": _why(bool(choices[place]), added, error / total),
            }
        )
    return found


def document(mixer: StaticMixer, made: Made, batches: Sequence[tuple[np.ndarray, ...]]) -> dict[str, object]:
    """Return the file of a recipe, in plain JSON types: ``quant.replay`` makes the same tables of it."""
    return plain(
        {
            **artifact_document(made.artifact, batches),
            "conditions": mixer.latency.conditions,
            "foreseen": {"error": made.choice.error, "seconds": made.choice.seconds},
            "measured": {"seconds": made.seconds, "float_seconds": made.float_seconds},
            "layers": operators(mixer, made),
        }
    )


def _beside_others(mixer: StaticMixer, made: Made) -> str:
    """What simpler choices would lose."""
    program, narrow = problem(mixer.errors, mixer.latency), foreseen(mixer.errors, mixer.latency, ())
    others = [f"with all of them in 8 bits {100 * narrow.error:.2g} % in {_time(narrow.seconds)}"]
    budget = (made.choice.seconds - mixer.latency.rest) * (1 + 1e-9)
    if budget >= narrow.seconds - mixer.latency.rest:
        others.append(f"chosen greedily {100 * program.total_error(greedy(program, budget)) ** 0.5:.2g} %")
    return ", ".join(others)


def _why(wide: bool, added: float, share: float) -> str:
    """What the other format would change, which takes so many seconds more."""
    if wide:
        saving = f"save {_time(-added)}" if added < 0 else "save no time"
        return f"{FORMATS[0]} would {saving} and add {100 * share:.2g} % of error"
    return f"{FORMATS[1]} would take {_time(added)} and remove {100 * share:.2g} %"


def _time(seconds: float) -> str:
    return f"{three_digits(1e3 * seconds)} ms"
