"""A language model for Core ML that keeps its cache itself: a token and its place per call, the logits of the next.

What was read lies in the program's states, in half precision, so that nothing but a token goes in and nothing but
logits come out; a state of zeros begins a text. For iOS 18, macOS 15 and later.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from quant.exporting.writers.coreml import KEY, codes, kept_in, specification, version

__all__ = ["codes", "load", "version", "write"]

ARTIFACT = "model.mlpackage"
BACKEND = "coreml"
STEPS = True
RUNS_ON = "darwin"


def write(quantized, built: Path, artifact: Path) -> None:
    """Copy the backend's package of a step, and have it keep its caches."""
    from quant.backends._coreml_package import SPECIFICATION, Package
    from quant.backends._coreml_stateful import keep_caches

    package = Package(built)
    keep_caches(package)
    inputs, outputs = package.model.description.input, package.model.description.output
    kept = {
        "constants": package.names["constants"],
        "inputs": [value.name for value in inputs],
        "outputs": [value.name for value in outputs],
        "in_gate_order": [],
    }
    package.model.description.metadata.userDefined[KEY] = json.dumps(kept)
    shutil.copytree(built / ARTIFACT, artifact)
    (artifact / SPECIFICATION).write_bytes(package.model.SerializeToString())


def load(artifact: Path):
    """Load the package into Core ML on macOS, elsewhere into the reference evaluator.

    The function reads texts int64 [1, t] token by token, each from an empty state on.
    """
    token, place = kept_in(specification(artifact))["inputs"]
    (output,) = kept_in(specification(artifact))["outputs"]
    if sys.platform == "darwin":
        from quant.backends._coreml_package import coremltools

        model = coremltools().models.MLModel(str(artifact))
        run, make_state = model.predict, model.make_state
    else:
        from quant.backends.coreml_evaluator import Evaluator

        run = Evaluator(artifact, half=True)
        make_state = run.make_state

    def function(tokens: np.ndarray) -> list[np.ndarray]:
        state, logits = make_state(), []
        for index, value in enumerate(tokens[0]):
            given = {token: np.array([[value]], np.int32), place: np.array([index], np.int32)}
            logits.append(np.asarray(run(given, state=state)[output], np.float32))
        return [np.stack(logits, axis=1)]

    return function
