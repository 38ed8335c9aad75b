"""A ``.pt2`` in the form PT2E leaves quantized programs in, quantize and dequantize operators, which ExecuTorch lowers.

``to_edge_transform_and_lower(torch.export.load("model.pt2"), partitioner=[XnnpackPartitioner()])`` makes of it what
ExecuTorch runs. Load such files only from sources you trust: torch unpickles what it finds in them.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quant.exporting import Layout

ARTIFACT = "model.pt2"
BACKEND = None


def write(quantized, built: None, artifact: Path) -> None:
    """Write the program.

    Raises:
        ValueError: PT2E has no operator for a table.
    """
    import torch

    from quant.exporting.decomposed import DecomposedWeight, quantizer
    from quant.exporting.stored_weights import exported

    torch.export.save(exported(quantized, DecomposedWeight, quantizer), artifact)


def load(artifact: Path):
    import torch.ao.quantization.fx._decomposed  # noqa: F401 - it registers the operators

    from quant.exporting.writers import pt2

    return pt2.load(artifact)


def version() -> str:
    from quant.exporting.writers import pt2

    return pt2.version()


def codes(artifact: Path, layouts: Mapping[str, Layout]) -> dict[str, np.ndarray]:
    import torch

    from quant.exporting.decomposed import unshifted

    state = torch.export.load(artifact).state_dict
    return {
        name: unshifted(state[f"{name}.codes"], layout.bits, layout.signed).numpy() for name, layout in layouts.items()
    }
