"""What an artefact, or a module of PyTorch, answers on the samples it is judged on."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks import judging
from fixtures.model import Samples
from quant.backends import Executable
from reports.paired import Contributions

if TYPE_CHECKING:
    from benchmarks.matrix import Case

Judge = Callable[[np.ndarray, Samples], Contributions | None]
"""Returns what samples add to the metric, by their outputs [n, ...]."""


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


def answer(
    executable: Executable,
    samples: Samples,
    batch: int,
    seconds: float,
    report: Callable[[int], None],
    kept: int | None = None,
    judge: Judge | None = None,
) -> Answers:
    """Run all samples, ``batch`` at a time, or those that ``seconds`` allow; ``report`` gets how many are done.

    Of a model whose outputs are too large to keep, the first ``kept`` ones are, and ``judge`` sees all.
    """
    kept, start = kept or len(samples), time.perf_counter()
    outputs, added, done = [], [], 0
    for inputs in samples.batches(batch):
        result = np.asarray(executable(*inputs)[0], dtype=np.float32)
        if judge is not None:
            added.append(judge(result, samples.between(done, done + len(result))))
        if done < kept:
            outputs.append(result[: kept - done])
        done += len(result)
        report(done)
        if time.perf_counter() - start > seconds:
            break
    contributions = judging.joined_contributions(added) if judge is not None else None
    return Answers(np.concatenate(outputs), contributions, truncated=done < len(samples))


def answers_of_module(module: Callable, samples: Samples, batch: int) -> np.ndarray:
    """Return float32 [n, ...]: the first output of a module of PyTorch on all samples, ``batch`` at a time."""
    with torch.inference_mode():
        results = [module(*map(torch.from_numpy, inputs))[0].numpy() for inputs in samples.batches(batch)]
    return np.concatenate(results)


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
