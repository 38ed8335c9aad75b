"""Accelerators: those that torch can use, and those that are here although it cannot."""

import re
import subprocess

import torch

from quant.hardware._parts import Accelerator, Processor

_CPU_ONLY = "this build of torch has no CUDA"
_NO_METAL = "torch cannot use Metal here"
_CARD = re.compile(r"^(?P<name>.+), (?P<mib>\d+), (?P<major>\d+)\.(?P<minor>\d+)$", re.MULTILINE)
_VIRTUAL = "a virtual machine does not reach it"


def find(processor: Processor) -> list[Accelerator]:
    """Return the accelerators beside ``processor``."""
    found = _cuda() or _nvidia_without_torch(_nvidia_smi())
    if processor.apple:
        usable = torch.backends.mps.is_available()
        found.append(Accelerator("mps", f"{processor.name} GPU", unused=None if usable else _NO_METAL))
        # No interface tells of it; every Mac with a chip of Apple's has one.
        unused = _VIRTUAL if processor.virtual else None
        found.append(Accelerator("neural engine", f"{processor.name} Neural Engine", unused=unused))
    return found


def _cuda() -> list[Accelerator]:
    if not torch.cuda.is_available():
        return []
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [Accelerator("cuda", card.name, card.total_memory, (card.major, card.minor)) for card in cards]


def _nvidia_smi() -> str:
    """Return a line for each card that NVIDIA's driver knows: name, MiB of memory, compute capability."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _nvidia_without_torch(text: str) -> list[Accelerator]:
    unused = _CPU_ONLY if torch.version.cuda is None else "torch cannot start CUDA on it"
    return [
        Accelerator("cuda", card["name"], int(card["mib"]) * 2**20, (int(card["major"]), int(card["minor"])), unused)
        for card in _CARD.finditer(text)
    ]
