"""What an artefact answers on the samples it is judged on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reports.paired import Contributions

if TYPE_CHECKING:
    from benchmarks.matrix import Case


@dataclass(frozen=True)
class Answers:
    """What an artefact answers; saved as a folder.

    outputs        float32 [n, ...], the first output on each sample of which outputs are kept
    contributions  what each sample adds to the metric where not all outputs are kept, else None: it is computed anew
    truncated      whether the time cap was reached before the last sample
    """

    outputs: np.ndarray
    contributions: Contributions | None = None
    truncated: bool = False

    def save(self, folder: Path) -> None:
        np.save(folder / "outputs.npy", self.outputs)
        if self.contributions is not None:
            parts = {"numerators": self.contributions.numerators, "denominators": self.contributions.denominators}
            np.savez(folder / "contributions.npz", **{name: part for name, part in parts.items() if part is not None})
            (folder / "form").write_text(self.contributions.form)

    @classmethod
    def load(cls, folder: Path) -> "Answers":
        outputs, form = np.load(folder / "outputs.npy"), folder / "form"
        if not form.exists():
            return cls(outputs)
        with np.load(folder / "contributions.npz") as parts:
            return cls(outputs, Contributions(parts["numerators"], parts.get("denominators"), form.read_text()))


def refuse_not_finite(case: "Case", answers: Answers) -> None:
    """Refuse answers that cannot be judged.

    Raises:
        ValueError: one of them is NaN or infinite.
    """
    kept = [answers.outputs] if answers.contributions is None else [answers.outputs, answers.contributions.numerators]
    for values in kept:
        broken = int(np.sum(~np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
        if broken:
            raise ValueError(f"{case} gives NaN or infinity on {broken} of {len(values)} samples: it cannot be judged.")
