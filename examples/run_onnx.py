"""Run a model exported to standard ONNX with ONNX's own reference implementation, on the sample beside it.

python examples/run_onnx.py build/minilm-rtn-int4/onnx
"""

import sys
from pathlib import Path

import numpy as np
from onnx.reference import ReferenceEvaluator

folder = Path(sys.argv[1])
sample = np.load(folder / "sample.npz")
inputs = [sample[name] for name in sample.files if name.startswith("input_")]

evaluator = ReferenceEvaluator(str(folder / "model.onnx"))
output = evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=True)))[0]

print("output  ", output.ravel()[:4])
print("expected", sample["expected"].ravel()[:4])
