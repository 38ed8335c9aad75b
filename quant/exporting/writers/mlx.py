"""MLX: weights in safetensors as ``mlx.nn`` packs and names them, and the model as a function that takes them.

``mx.import_function("model.mlxfn")`` runs on ``mx.load("model.safetensors")`` without another line of code, one sample
of the examples' shape at a time. ``config.json`` says how each weight is stored.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quant.exporting import Layout

ARTIFACT = "mlx"
BACKEND = "mlx"

_WEIGHTS, _FUNCTION, _CONFIG = "model.safetensors", "model.mlxfn", "config.json"


def write(quantized, built: Path, artifact: Path) -> None:
    from quant.backends._mlx_blas import mx
    from quant.exporting import mlx_function

    artifact.mkdir()
    shutil.copyfile(built / _WEIGHTS, artifact / _WEIGHTS)
    examples = quantized.graph.examples["forward"]
    mlx_function.write(built, artifact, [mx.array(example[:1].numpy()) for example in examples])
    config = json.loads((built / _CONFIG).read_text())
    kept = {name: config[name] for name in ("dtype", "weights", "weights_sha256")}
    (artifact / _CONFIG).write_text(json.dumps(kept, indent=1))


def load(artifact: Path):
    import mlx.core as mx

    weights, function = mx.load(str(artifact / _WEIGHTS)), mx.import_function(str(artifact / _FUNCTION))
    return lambda *inputs: [np.array(output) for output in function(*map(mx.array, inputs), **weights)]


def version() -> str:
    from importlib.metadata import version

    return f"mlx {version('mlx')}"


def codes(artifact: Path, layouts: Mapping[str, Layout]) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    from quant.exporting.streams import packed_codes, plain_codes

    entries, found = json.loads((artifact / _CONFIG).read_text())["weights"], {}
    with safe_open(artifact / _WEIGHTS, framework="pt") as file:
        for name, layout in layouts.items():
            entry = entries[name]
            undo = plain_codes if entry["form"] == "codes" else packed_codes
            found[name] = undo(file.get_tensor(entry["tensors"]["codes"]), layout)
    return found
