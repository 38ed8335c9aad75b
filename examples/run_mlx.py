"""Run a model exported to MLX on the sample beside it.

python examples/run_mlx.py build/minilm-rtn-int4/mlx
"""

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

folder = Path(sys.argv[1])
sample = np.load(folder / "sample.npz")
inputs = [mx.array(sample[name]) for name in sample.files if name.startswith("input_")]

weights = mx.load(str(folder / "mlx" / "model.safetensors"))
function = mx.import_function(str(folder / "mlx" / "model.mlxfn"))
output = np.array(function(*inputs, **weights)[0])

print("output  ", output.ravel()[:4])
print("expected", sample["expected"].ravel()[:4])
