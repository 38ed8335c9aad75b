"""Run a language model exported for mlx-lm on the sample beside it.

pip install mlx-lm
python examples/run_mlx_lm.py build/reviews_gpt-rtn-int4/mlx_lm
"""

import importlib.util
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

if not importlib.util.find_spec("mlx_lm"):
    sys.exit("mlx-lm is not installed: pip install mlx-lm")
from mlx_lm.utils import load_model

folder = Path(sys.argv[1])
sample = np.load(folder / "sample.npz")

model, _ = load_model(folder / "mlx_lm")
output = np.array(model(mx.array(sample["input_0"])).astype(mx.float32))

print("output  ", output.ravel()[:4])
print("expected", sample["expected"].ravel()[:4])
