"""Run a model exported to PyTorch's .pt2 on the sample beside it.

python examples/run_pt2.py build/minilm-rtn-int4/pt2
"""

import sys
from pathlib import Path

import numpy as np
import torch

folder = Path(sys.argv[1])
sample = np.load(folder / "sample.npz")
inputs = [torch.from_numpy(sample[name]) for name in sample.files if name.startswith("input_")]

module = torch.export.load(folder / "model.pt2").module()
with torch.inference_mode():
    output = module(*inputs)[0].numpy()

print("output  ", output.ravel()[:4])
print("expected", sample["expected"].ravel()[:4])
