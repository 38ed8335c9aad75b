"""Run a model exported to ONNX for ONNX Runtime on the sample beside it.

python examples/run_onnxruntime.py build/minilm-rtn-int4/onnxruntime
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder = Path(sys.argv[1])
sample = np.load(folder / "sample.npz")
inputs = [sample[name] for name in sample.files if name.startswith("input_")]

session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
names = [entry.name for entry in session.get_inputs()]
output = session.run(None, dict(zip(names, inputs, strict=True)))[0]

print("output  ", output.ravel()[:4])
print("expected", sample["expected"].ravel()[:4])
