"""Run a model exported to LiteRT on the sample beside it.

pip install ai-edge-litert
python examples/run_litert.py build/mobilenet_v2-static-int8/litert
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np

if not importlib.util.find_spec("ai_edge_litert"):
    sys.exit("LiteRT is not installed: pip install ai-edge-litert")
from ai_edge_litert.interpreter import Interpreter

folder = Path(sys.argv[1])
sample = np.load(folder / "sample.npz")
inputs = [sample[name] for name in sample.files if name.startswith("input_")]

interpreter = Interpreter(str(folder / "litert" / "model.tflite"))
interpreter.allocate_tensors()
entries = sorted(interpreter.get_input_details(), key=lambda entry: entry["name"])
for entry, value in zip(entries, inputs, strict=True):
    scale, zero_point = entry["quantization"]
    if scale:  # the model takes integers
        value = np.clip(np.rint(value / scale) + zero_point, -128, 127)
    interpreter.set_tensor(entry["index"], value.astype(entry["dtype"]))
interpreter.invoke()
entry = interpreter.get_output_details()[0]
output, (scale, zero_point) = interpreter.get_tensor(entry["index"]), entry["quantization"]
if scale:
    output = (output.astype(np.float32) - zero_point) * scale

print("output  ", output.ravel()[:4])
print("expected", sample["expected"].ravel()[:4])
