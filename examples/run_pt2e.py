"""Run a model exported in PT2E's form on the sample beside it; with ExecuTorch installed, lower it to XNNPACK first.

python examples/run_pt2e.py build/mobilenet_v2-static-int8/pt2e
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed

folder = Path(sys.argv[1])
sample = np.load(folder / "sample.npz")
inputs = [torch.from_numpy(sample[name]) for name in sample.files if name.startswith("input_")]

program = torch.export.load(folder / "model.pt2")
if importlib.util.find_spec("executorch"):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    (folder / "model.pte").write_bytes(lowered.to_executorch().buffer)
    print("wrote", folder / "model.pte")
with torch.inference_mode():
    output = program.module()(*inputs)[0].numpy()

print("output  ", output.ravel()[:4])
print("expected", sample["expected"].ravel()[:4])
