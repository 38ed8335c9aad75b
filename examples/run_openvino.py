"""Run a model exported to OpenVINO on the sample beside it.

pip install openvino
python examples/run_openvino.py build/minilm-rtn-int4/openvino
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np

if not importlib.util.find_spec("openvino"):
    sys.exit("OpenVINO is not installed: pip install openvino")
import openvino

folder = Path(sys.argv[1])
sample = np.load(folder / "sample.npz")
inputs = [sample[name] for name in sample.files if name.startswith("input_")]

model = openvino.Core().compile_model(folder / "openvino" / "model.xml", "CPU")
output = next(iter(model(inputs).values()))

print("output  ", output.ravel()[:4])
print("expected", sample["expected"].ravel()[:4])
