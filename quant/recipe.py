"""What a quantized model is trained on, and how."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Learns = Literal["all", "scales"]
"""All that the tables hold, biases and gains of norms too; or the scales of weights, and norms."""
Estimator = Literal["lsq", "pact"]
"""Where the gradient of a range comes from: from every value, or from those that are clipped alone."""
Batch = Sequence[Tensor]
"""One tensor for each input of the model, then whatever the loss takes beside the outputs, such as labels."""
Loss = Callable[..., Tensor]
"""Outputs and the rest of a batch -> a mean over the batch."""


_VALIDATES = 1 / 8
"""The share of unlabelled data that validates."""
_BATCH = 16


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. The defaults suit fine-tuning from tables made without training.

    steps           batches learned from; a loader that has fewer is gone through again
    rate            of Adam, for weights, as a share of half the range of their block, and for biases and norms, of what
                    they are; it rises at first, then falls to zero along a cosine
    scale_rate      the same for scales and zero points, as a share of what they are and of the range
    weight_decay    of AdamW, for weights
    learns          "all", or "scales": scales and norms, while codes and zero points stay
    distillation    the share of the distance from the float model in what is minimized; without a loss it is all
    distance        "kl" between the probabilities of classes along the last axis, or "mse", relative to float's energy
    estimator       how ranges of activations learn: "lsq", or "pact" (with ``weight_decay`` on its clips)
    bits            numbers of bits to come down by, such as (8, 4), in the first half of the steps
    noise           the share of blocks of weights that is quantized at each step; the rest is float in this step
    validate_every  steps between two looks at the validation data
    patience        looks without improvement after which to stop; None never stops early
    seed            of everything random
    """

    steps: int = 1000
    rate: float = 1e-4
    scale_rate: float = 1e-3
    weight_decay: float = 0.0
    learns: Learns = "all"
    distillation: float = 0.0
    distance: Literal["kl", "mse"] = "kl"
    estimator: Estimator = "lsq"
    bits: tuple[int, ...] = ()
    noise: float = 1.0
    validate_every: int = 100
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        shares = {"distillation": self.distillation, "noise": self.noise}
        wrong = [name for name, share in shares.items() if not 0 <= share <= 1]
        wrong += [name for name in ("rate", "scale_rate") if not 0 < getattr(self, name) < math.inf]
        wrong += [name for name in ("steps", "validate_every") if getattr(self, name) < 1]
        if wrong:
            raise ValueError(f"a recipe with {wrong[0]}={getattr(self, wrong[0])} cannot be trained by: see Recipe.")


@dataclass(frozen=True)
class Validation:
    """What training is judged by, on data it does not learn from: the best tables it came by are returned.

    metric  as the loss is, averaged over all batches; None takes what is minimized
    """

    loader: Iterable[Batch]
    metric: Loss | None = None
    better: Literal["lower", "higher"] = "lower"

    @property
    def name(self) -> str:
        """What the metric is called."""
        name = "validation loss" if self.metric is None else getattr(self.metric, "__name__", "metric")
        return "metric" if name == "<lambda>" else name.replace("_", " ")


@dataclass(frozen=True)
class Training:
    """What a model is trained on, and how.

    loader      batches; iterated anew every epoch, before which torch's generator is seeded
    loss        None distils from the float model alone
    digest      of the data, for caches
    start_data  what the tables that training starts from are calibrated on; None takes the calibration data. Nothing
                that validates is to be in it: where tables were fitted to it, they look better than all that follow
    checkpoint  where the state lies while training lasts
    """

    loader: Iterable[Batch]
    loss: Loss | None = None
    recipe: Recipe = field(default_factory=Recipe)
    validation: Validation | None = None
    digest: str = ""
    start_data: Sequence[Batch] | None = None
    checkpoint: Path | None = None


class Shuffled:
    """Batches of samples, each epoch in another order, which torch's generator draws.

    Args:
        tensors: the inputs and the rest, [n, ...] each.
        size: samples per batch; a smaller rest is left for another epoch.
        changed: what is made of the batches, such as distorted images.
    """

    def __init__(
        self, tensors: Sequence[Tensor], size: int, changed: Callable[[Batch], Batch] = lambda batch: batch
    ) -> None:
        self.tensors, self.size, self.changed = tuple(tensors), min(size, len(tensors[0])), changed

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.tensors[0]))
        for start in range(0, len(order) - self.size + 1, self.size):
            chosen = order[start : start + self.size]
            yield self.changed(tuple(values[chosen] for values in self.tensors))


def in_order(tensors: Sequence[Tensor], size: int) -> list[Batch]:
    """Return all samples in batches, as validation takes them."""
    return list(zip(*(values.split(size) for values in tensors), strict=True))


def unlabelled(calibration: Sequence[Sequence[object]], recipe: Recipe | None = None) -> Training:
    """Return training on the float model's outputs on calibration data, some of which validates and does nothing else.

    Raises:
        ValueError: there is no calibration data.
    """
    if not calibration:
        raise ValueError("without training data this method needs calibration data: pass at least one batch of inputs.")
    tensors = [torch.cat([torch.as_tensor(values) for values in parts]) for parts in zip(*calibration, strict=True)]
    count, at_once = len(tensors[0]), len(calibration[0][0])
    held_out, size = int(count * _VALIDATES), min(_BATCH, at_once)
    digest = hashlib.sha256()
    for values in tensors:
        digest.update(values.contiguous().numpy().data)
    learned = [values[: count - held_out] for values in tensors]
    judged = [values[count - held_out :] for values in tensors]
    validation = Validation(in_order(judged, size)) if held_out else None
    recipe, start_data = recipe or Recipe(), in_order(learned, at_once)
    return Training(Shuffled(learned, size), None, recipe, validation, digest.hexdigest(), start_data)
