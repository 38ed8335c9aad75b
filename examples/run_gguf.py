"""Run a language model exported to GGUF with llama.cpp on the sample beside it.

pip install llama-cpp-python
python examples/run_gguf.py build/reviews_gpt-rtn-int4/gguf
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np

if not importlib.util.find_spec("llama_cpp"):
    sys.exit("llama.cpp is not installed: pip install llama-cpp-python")
from llama_cpp import Llama

folder = Path(sys.argv[1])
sample = np.load(folder / "sample.npz")
tokens = sample["input_0"][0].tolist()

model = Llama(str(folder / "model.gguf"), n_ctx=len(tokens), logits_all=True, verbose=False)
model.eval(tokens)
output = np.array(model.scores[: len(tokens)])

print("output  ", output.ravel()[:4])
print("expected", sample["expected"].ravel()[:4])
