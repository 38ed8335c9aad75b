"""Checkpoints: the state of a training run as a file, from which a run that was stopped goes on."""

from pathlib import Path

import torch

from quant.reading import readable


def write_checkpoint(path: Path, state: dict[str, object]) -> None:
    """Write tensors and plain values; a run killed meanwhile leaves the checkpoint before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, object] | None:
    """Return what was written, on a device, or None if there is no checkpoint. Nothing in the file is run.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return None
    with readable(f"{path} cannot be read", "delete it to begin anew"):
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise TypeError("it holds no state")
        return state


def unreadable(path: Path, error: Exception) -> ValueError:
    """Return what to raise where a checkpoint cannot be gone on with."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return ValueError(f"{path} cannot be read ({reason}): delete it to begin anew.")
