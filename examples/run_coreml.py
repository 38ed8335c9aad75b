"""Run a model exported to Core ML, on macOS, on the sample beside it.

python examples/run_coreml.py build/minilm-rtn-int4/coreml
"""

import sys
from pathlib import Path

import numpy as np

if sys.platform != "darwin":
    sys.exit("Core ML runs models on macOS only: copy the folder to a Mac and run this there.")
import coremltools

folder = Path(sys.argv[1])
sample = np.load(folder / "sample.npz")
inputs = [sample[name] for name in sample.files if name.startswith("input_")]

model = coremltools.models.MLModel(str(folder / "model.mlpackage"))
description = model.get_spec().description
arrays = [value.astype(np.int32) if value.dtype.kind == "i" else value for value in inputs]
outputs = model.predict(dict(zip([entry.name for entry in description.input], arrays, strict=True)))
output = outputs[description.output[0].name]

print("output  ", output.ravel()[:4])
print("expected", sample["expected"].ravel()[:4])
