"""Ingredients of what the workshop makes: what names weights and runtimes in its keys, and what is trained on."""

import hashlib
import importlib.metadata
from collections.abc import Sequence

import torch

from fixtures.model import Model
from quant.backends import Target
from quant.calibrate import Batch
from quant.recipe import Recipe, Training, unlabelled


def state_digest(module: torch.nn.Module) -> str:
    """Return the digest of a module's parameters and buffers, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def runtime_versions(target: Target, native: bool) -> list[str]:
    """Return the versions of a target's runtime and, where it quantizes itself, of what it does that with."""
    packages = list(target.constant("NATIVE_REQUIRES", {})) if native else []
    return [target.load().version(), *(f"{name} {importlib.metadata.version(name)}" for name in packages)]


def training_of(model: Model, calibration: Sequence[Batch]) -> Training:
    """Return what a model's quantized numbers are trained on: its own data, or the float model on the calibration."""
    if model.training is not None:
        return model.training()
    return unlabelled(calibration, Recipe(distance="kl" if model.logits else "mse"))
