"""Go on with a text by a language model exported to Core ML with a cache of its own, on macOS.

python examples/run_coreml_stateful.py build/reviews_gpt-rtn-int4/coreml_stateful
"""

import sys
from pathlib import Path

import numpy as np

if sys.platform != "darwin":
    sys.exit("Core ML runs models on macOS only: copy the folder to a Mac and run this there.")
import coremltools

GENERATED = 8

folder = Path(sys.argv[1])
sample = np.load(folder / "sample.npz")
text, expected = sample["input_0"][0], sample["expected"][0]

model = coremltools.models.MLModel(str(folder / "model.mlpackage"))
description = model.get_spec().description
token, place = (entry.name for entry in description.input)
entries = description.state[0].type.stateType.arrayType.shape[2]
state = model.make_state()


def read(value, index):
    """Read one token, and return the logits of the next."""
    inputs = {token: np.array([[value]], np.int32), place: np.array([index], np.int32)}
    return model.predict(inputs, state=state)[description.output[0].name][0]


length = min(len(text), entries) - GENERATED
for index in range(length):
    logits = read(text[index], index)
print("output  ", logits[:4])
print("expected", expected[length - 1][:4])

tokens = [int(logits.argmax())]
while len(tokens) < GENERATED:
    tokens.append(int(read(tokens[-1], length + len(tokens) - 1).argmax()))
print("goes on with the tokens", *tokens)
