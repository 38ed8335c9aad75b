"""Quantization-aware training: the numbers of the tables learn, by gradients of a loss or from the float model.

    quantized = quant.qat(module, "int4", loader, torch.nn.functional.cross_entropy)

Training starts from tables that a method made without training, and returns tables of the same kind: weights, scales
and zero points, biases and gains of norms, ranges of activations, whatever of these the scheme has. How each of them
gets its gradient says :mod:`quant.fake_quantize`; what is run, :mod:`quant.trainable`.

Distillation adds the distance from the outputs of the float model to the loss, or takes its place where there are no
labels (Hinton et al., 2015, arXiv:1503.02531; Polino et al., 2018, arXiv:1802.05668). Bits may be lowered gradually
(Zhuang et al., 2018, arXiv:1711.00205), and a random share of the weights be left float at every step (Fan et al.,
"Training with Quantization Noise for Extreme Model Compression", 2021, arXiv:2004.07320).

A step depends on nothing but its number and what the steps before it made: a run that was stopped and goes on from its
checkpoint ends with the tables of one that was not.
"""

import hashlib
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from inspect import Parameter, signature
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.checkpoints import read_checkpoint, unreadable, write_checkpoint
from quant.fake_quantize import Choose
from quant.graph import FloatGraph, QuantizedModel
from quant.progress import is_reported, reporting, steps
from quant.recipe import Batch, Loss, Recipe, Training, Validation
from quant.scheme import Scheme, parse
from quant.trainable import TrainableModel

SECONDS_BETWEEN_CHECKPOINTS = 30.0
SECONDS_BETWEEN_LINES = 20.0
_WARM_UP = 0.05
_LARGEST_GRADIENT = 1.0


def qat(
    model: FloatGraph | nn.Module | QuantizedModel,
    scheme: Scheme | str,
    loader: Iterable[Batch],
    loss: Loss | None,
    recipe: Recipe | None = None,
    validation: Validation | None = None,
    checkpoint: Path | str | None = None,
) -> QuantizedModel:
    """Return the tables of ``model`` in ``scheme``, trained.

    Always: step sizes learn, of weights and of activations with a fixed range (LSQ), and so do zero points (LSQ+),
    biases, and gains of norms; batch norms are folded into the weights that are rounded, and frozen. If the recipe
    says so:

        Recipe(distillation=0.5)     half of what is minimized is the distance from the float model
        Recipe(learns="scales")      scales and norms alone learn, the codes stay (the method ``distill``)
        Recipe(estimator="pact", weight_decay=1e-4)    clips of activations learn as in PACT
        Recipe(bits=(8, 4))          bits are lowered gradually: from 8 to 4 to those of the scheme
        Recipe(noise=0.5)            quantization noise: half of the blocks are rounded at each step

    Progress goes to the standard error, or wherever :func:`quant.progress.reporting` sends it.

    Args:
        model: a module in eval mode, which is captured with the first batch; a captured graph; or a quantized model,
            from whose tables training starts, as it has to where activations are quantized. Otherwise weights start in
            scales of least squared error.
        scheme: a bits word of weight-only schemes, or a scheme; that of the quantized model, where one is given.
        loader: batches, each a sequence of one tensor per input of the model and what the loss takes beside outputs.
        loss: called as ``loss(outputs, *rest_of_the_batch)``, such as ``torch.nn.functional.cross_entropy``; None
            distils from the float model, without labels.
        checkpoint: a file in which the state is kept every half minute, and from which a run that was stopped goes on.

    Raises:
        ValueError: the loader gives no batch, the loss becomes NaN or infinite, the scheme has no integer weights or
            is another one than the quantized model's, or the checkpoint is damaged or of another training.
    """
    scheme = parse(scheme) if isinstance(scheme, str) else scheme
    start = _start(model, scheme, loader)
    place = None if checkpoint is None else Path(checkpoint)
    with nullcontext() if is_reported() else reporting("qat", _Lines()):
        return train(start, Training(loader, loss, recipe or Recipe(), validation, checkpoint=place))


def train(start: QuantizedModel, training: Training) -> QuantizedModel:
    """Return the tables that training leads to from those of ``start``; errors are those of :func:`qat`."""
    if not start.weights or any(weight.codebook is not None for weight in start.weights.values()):
        raise ValueError(f"{start.scheme} has no integer weights to train: use int4 or another word of theirs.")
    with torch.enable_grad():
        run = _Run(start, training)
        run.go()
    return run.tables()


def kl_divergence(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean divergence, in nats, of what ``outputs`` make probable from what ``targets`` do."""
    found, wanted = (values.log_softmax(-1) for values in (outputs, targets))
    return F.kl_div(found, wanted, reduction="sum", log_target=True) / outputs[..., 0].numel()


def relative_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the energy of the difference over that of ``targets``."""
    return (outputs - targets).square().sum() / targets.square().sum().clamp(min=1e-12)


_DISTANCES = {"kl": kl_divergence, "mse": relative_error}


class _Objective:
    """What is minimized: the loss, the distance from the float model, or a share of both."""

    def __init__(self, graph: FloatGraph, training: Training) -> None:
        self.loss, recipe = training.loss, training.recipe
        self.share = 1.0 if training.loss is None else recipe.distillation
        self.distance = _DISTANCES[recipe.distance]
        self.teacher = graph.module() if self.share else None
        self.inputs = len(graph.graphs["forward"].inputs)

    def split(self, batch: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the inputs of the model and the rest of a batch."""
        batch = (batch,) if isinstance(batch, Tensor) else tuple(map(torch.as_tensor, batch))
        return batch[: self.inputs], batch[self.inputs :]

    def __call__(self, outputs: tuple[Tensor, ...], batch: Batch) -> Tensor:
        inputs, rest = self.split(batch)
        total = 0.0
        if self.share < 1:
            total = (1 - self.share) * self.loss(_single(outputs), *rest)
        if self.share:
            with torch.no_grad():
                wanted = self.teacher(*inputs)[0]
            total = total + self.share * self.distance(outputs[0], wanted)
        return total


class _Run:
    """A training run: the model, the optimizer's averages, and the best so far."""

    def __init__(self, start: QuantizedModel, training: Training) -> None:
        self.training, self.recipe = training, training.recipe
        self.model = TrainableModel(start, self.recipe.learns, self.recipe.estimator)
        self.objective = _Objective(start.graph, training)
        self.optimizer = _optimizer(self.model, self.recipe)
        self.step, self.loss, self.metric, self.waited = 0, math.nan, math.nan, 0
        self.best: dict[str, object] | None = None
        self._saved = time.monotonic()
        self._fingerprint = _fingerprint(start, training) if training.checkpoint else ""
        self._resume()

    def go(self) -> None:
        """Train to the end, or until nothing has improved for long enough."""
        recipe = self.recipe
        if self.step == 0:
            self._begin_stage()
            self._validate()
        remaining = range(self.step, recipe.steps)
        with torch.random.fork_rng(devices=[]):
            batches = _batches(self.training.loader, recipe.seed, self.step)
            for _ in steps(remaining, "step", self._note, recipe.steps):
                batch = next(batches)
                with _seeded(recipe.seed, self.step):
                    self._learn(batch)
                self.step += 1
                self._begin_stage()
                if self.step % recipe.validate_every == 0 or self.step == recipe.steps:
                    self._validate()
                if recipe.patience is not None and self.waited >= recipe.patience:
                    break
                self._save_now_and_then()

    def tables(self) -> QuantizedModel:
        """Return the best tables there were, or the last ones where nothing judged them; the checkpoint goes."""
        if self.best is not None:
            self.model.load_state_dict(self.best["model"])
        quantized = self.model.tables()
        described = {**asdict(self.recipe), "bits": list(self.recipe.bits), "loss": self.loss, "stopped_at": self.step}
        if self.best is not None:
            described |= {"best_step": self.best["step"], self.training.validation.name: self.best["value"]}
        quantized.recipe["training"] = described
        if self.training.checkpoint is not None:
            self.training.checkpoint.unlink(missing_ok=True)
        return quantized

    def _learn(self, batch: Batch) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * _rising_and_falling(self.step / self.recipe.steps)
        inputs, _ = self.objective.split(batch)
        loss = self.objective(self.model(*inputs, choose=self._choose()), batch)
        value = loss.item()
        if not math.isfinite(value):
            raise ValueError(
                f"the loss of step {self.step + 1} is {value}: lower the rate, which is {self.recipe.rate:g}, "
                "or check the data."
            )
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._learning(), _LARGEST_GRADIENT)
        self.optimizer.step()
        self.model.keep_valid()
        self.loss = value if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * value

    def _choose(self) -> Choose | None:
        share = self.recipe.noise
        return None if share == 1 else lambda shape: torch.rand(shape) < share

    def _begin_stage(self) -> None:
        """Lower the bits where the recipe has it so; what Adam remembers of other scales is forgotten."""
        starts = _stages(self.recipe)
        if self.step in starts:
            self.model.restart(starts[self.step])
            for one in self.model.ranges:
                for parameter in one.parameters():
                    self.optimizer.state.pop(parameter, None)

    @property
    def _in_own_bits(self) -> bool:
        return self.step >= max(_stages(self.recipe), default=0)

    @torch.no_grad()
    def _validate(self) -> None:
        validation = self.training.validation
        if validation is None or not self._in_own_bits:
            return
        total, count = 0.0, 0
        with torch.random.fork_rng(devices=[]):
            for batch in validation.loader:
                inputs, rest = self.objective.split(batch)
                outputs = self.model(*inputs)
                judged = validation.metric
                value = self.objective(outputs, batch) if judged is None else judged(_single(outputs), *rest)
                total, count = total + float(value) * len(inputs[0]), count + len(inputs[0])
        if not count:
            raise ValueError("the validation loader gives no batch: check its data.")
        self.metric = total / count
        sign = -1 if validation.better == "higher" else 1
        if self.best is None or sign * self.metric < sign * self.best["value"]:
            state = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.best, self.waited = {"value": self.metric, "step": self.step, "model": state}, 0
        else:
            self.waited += 1

    def _note(self) -> str:
        text = "" if math.isnan(self.loss) else f", loss {self.loss:.3g}"
        if self.best is not None:
            text += f", {self.training.validation.name} {self.metric:.4g} (best {self.best['value']:.4g})"
        return text

    def _learning(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _save_now_and_then(self) -> None:
        if self.training.checkpoint is None or time.monotonic() - self._saved < SECONDS_BETWEEN_CHECKPOINTS:
            return
        state = {name: getattr(self, name) for name in ("step", "loss", "metric", "waited", "best")}
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        write_checkpoint(self.training.checkpoint, {"fingerprint": self._fingerprint, **state, **parts})
        self._saved = time.monotonic()

    def _resume(self) -> None:
        path = self.training.checkpoint
        state = None if path is None else read_checkpoint(path)
        if state is None:
            return
        if state.get("fingerprint") != self._fingerprint:
            raise ValueError(f"{path} is of another training than this: delete it, or give another place.")
        try:
            for name in ("step", "loss", "metric", "waited", "best"):
                setattr(self, name, state[name])
            bits = [bits for first, bits in _stages(self.recipe).items() if first <= self.step]
            if bits:
                self.model.restart(bits[-1])
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise unreadable(path, error) from error


class _Lines:
    """Prints lines of progress to the standard error, now and then."""

    def __init__(self) -> None:
        self._printed = -math.inf

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            print(text, file=sys.stderr)


def _start(model: FloatGraph | nn.Module | QuantizedModel, scheme: Scheme, loader: Iterable[Batch]) -> QuantizedModel:
    from quant.methods import mse
    from quant.tracing import capture

    if isinstance(model, QuantizedModel):
        if model.scheme != scheme:
            raise ValueError(f"the quantized model is in {model.scheme}, not {scheme}: name its own scheme.")
        return model
    if scheme.activations is not None:
        raise ValueError(f"{scheme} quantizes activations: quantize the model by static or dynamic, and train that.")
    if scheme.linear is None or scheme.linear.codebook is not None:
        return QuantizedModel(model, scheme)
    if isinstance(model, nn.Module):
        first = next(iter(loader), None)
        if first is None:
            raise ValueError("the loader gives no batch: check its data.")
        first = (first,) if isinstance(first, Tensor) else first
        needed = [one for one in signature(model.forward).parameters.values() if one.default is Parameter.empty]
        model = capture(model, tuple(torch.as_tensor(values)[:2] for values in first[: len(needed)]))
    return mse.quantize(model, scheme)


def _optimizer(model: TrainableModel, recipe: Recipe) -> torch.optim.Optimizer:
    values = [weight.values for weight in model.weights if hasattr(weight, "values")]
    ranges = [value for one in model.weights for value in one.range.parameters() if value.requires_grad]
    clips = [parameter for one in model.activations for parameter in one.parameters()]
    decay = {"weight_decay": recipe.weight_decay}
    groups = [
        {"params": values, "highest": recipe.rate, **decay},
        {"params": [vector.moved for vector in model.floats if vector.moved.requires_grad], "highest": recipe.rate},
        {"params": ranges, "highest": recipe.scale_rate},
        {"params": clips, "highest": recipe.scale_rate, **(decay if recipe.estimator == "pact" else {})},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0, fused=True)


def _rising_and_falling(progress: float) -> float:
    """Return the share of the highest rate after a share of the steps (Loshchilov and Hutter, arXiv:1608.03983)."""
    if progress < _WARM_UP:
        return (progress + 1e-3) / (_WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))


def _stages(recipe: Recipe) -> dict[int, int]:
    """Return the steps at which the numbers of bits change, and to what; 0 means each weight's own."""
    each = recipe.steps // (2 * len(recipe.bits)) if recipe.bits else 0
    found = {each * position: bits for position, bits in enumerate(recipe.bits)}
    return {**found, each * len(recipe.bits): 0} if found else {}


def _batches(loader: Iterable[Batch], seed: int, skipped: int) -> Iterator[Batch]:
    """Yield batches without end, but for the first so many; every epoch begins with a seed of its own."""
    epoch = 0
    while True:
        torch.manual_seed(_mixed(seed, "epoch", epoch))
        found = False
        for batch in loader:
            found = True
            if skipped:
                skipped -= 1
                continue
            yield batch
        if not found:
            again = "gives no batch" if epoch == 0 else "cannot be gone through again"
            raise ValueError(f"the loader {again}: pass a list, a DataLoader, or another thing that can be iterated.")
        epoch += 1


@contextmanager
def _seeded(seed: int, step: int) -> Iterator[None]:
    """Seed what a step draws by its number, and leave the generator to the loader as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_mixed(seed, "step", step))
        yield


def _mixed(seed: int, what: str, number: int) -> int:
    """Return a seed of 32 bits, which is all that torch's generator takes of one."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{what}:{number}".encode()).digest()[:4])


def _single(outputs: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return outputs[0] if len(outputs) == 1 else outputs


def _fingerprint(start: QuantizedModel, training: Training) -> str:
    """Return the digest of what decides the course of a training, but for the data of a loader of the user's."""
    digest = hashlib.sha256(json.dumps([asdict(training.recipe), training.digest], sort_keys=True).encode())
    digest.update(start.graph.weights_sha256.encode())
    for name, weight in start.weights.items():
        digest.update(f"{name} {weight.format}".encode())
        digest.update(weight.codes.contiguous().view(torch.uint8).numpy().data)
        digest.update(weight.scale.contiguous().numpy().data)
    return digest.hexdigest()
