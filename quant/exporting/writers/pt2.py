"""PyTorch's ``.pt2``: an exported program of ATen operators that dequantizes its packed weights whenever it runs.

``torch.export.load("model.pt2").module()`` runs it, and AOTInductor compiles it. Load such files only from sources you
trust: torch unpickles what it finds in them.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quant.exporting import Layout

ARTIFACT = "model.pt2"
BACKEND = None


def write(quantized, built: None, artifact: Path) -> None:
    import torch

    from quant.exporting.stored_weights import StoredWeight, exported

    program = exported(quantized, lambda name, weight: StoredWeight(weight), lambda quantizer: quantizer)
    torch.export.save(program, artifact)


def load(artifact: Path):
    import torch

    torch.set_num_threads(1)
    module = torch.export.load(artifact).module()

    def function(*inputs: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [output.float().numpy() for output in module(*map(torch.from_numpy, inputs))]

    return function


def version() -> str:
    from importlib.metadata import version

    return f"torch {version('torch')}"


def codes(artifact: Path, layouts: Mapping[str, Layout]) -> dict[str, np.ndarray]:
    import torch

    from quant.exporting.stored_weights import unpacked

    state = torch.export.load(artifact).state_dict
    return {
        name: unpacked(state[f"{name}.codes"], layout.shape, layout.bits, layout.signed).numpy()
        for name, layout in layouts.items()
    }
