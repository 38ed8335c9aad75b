"""Core ML's ``.mlpackage``: weights in Core ML's compressed forms, for iOS 18, macOS 15 and later."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quant.exporting import Layout

ARTIFACT = "model.mlpackage"
BACKEND = "coreml"
RUNS_ON = "darwin"

KEY = "quant.names"
_COMPRESSED = {"constexpr_blockwise_shift_scale": "data", "constexpr_lut_to_dense": "indices"}


def write(quantized, built: Path, artifact: Path) -> None:
    """Copy the backend's package, with the names of its weights as metadata of its own."""
    from quant.backends._coreml_package import NAMES, SPECIFICATION, coremltools
    from quant.backends._coreml_recurrent import weights_in_gate_order

    shutil.copytree(built / ARTIFACT, artifact)
    names = json.loads((built / NAMES).read_text())
    kept = {"constants": names["constants"], "outputs": names["outputs"], "inputs": names["inputs"]}
    kept["in_gate_order"] = sorted(weights_in_gate_order(quantized.graph))
    model = coremltools().proto.Model_pb2.Model.FromString((artifact / SPECIFICATION).read_bytes())
    model.description.metadata.userDefined[KEY] = json.dumps(kept)
    (artifact / SPECIFICATION).write_bytes(model.SerializeToString())


def load(artifact: Path):
    """Load the package into Core ML on macOS, elsewhere into the reference evaluator."""
    from quant.backends._coreml_package import coremltools

    kept = kept_in(specification(artifact))
    if sys.platform == "darwin":
        run = coremltools().models.MLModel(str(artifact)).predict
    else:
        from quant.backends.coreml_evaluator import Evaluator

        run = Evaluator(artifact, half=True)

    def function(*inputs: np.ndarray) -> list[np.ndarray]:
        # Core ML has no 64-bit types.
        arrays = [np.asarray(x, np.int32 if x.dtype.kind in "iub" else np.float32) for x in inputs]
        outputs = run(dict(zip(kept["inputs"], arrays, strict=True)))
        return [np.asarray(outputs[name], np.float32) for name in kept["outputs"]]

    return function


def version() -> str:
    from quant.backends.coreml import version

    return version() if sys.platform == "darwin" else f"{version()}, reference evaluator"


def codes(artifact: Path, layouts: Mapping[str, Layout]) -> dict[str, np.ndarray]:
    import torch

    from quant.backends._coreml_package import Program
    from quant.backends._coreml_recurrent import reordered

    program = Program(artifact)
    kept = kept_in(program.model)
    stored = {operation.outputs[0].name: operation for operation in program.operations if operation.outputs}
    found = {}
    for name, layout in layouts.items():
        operation = stored.get(kept["constants"].get(name))
        if operation is None or operation.type not in _COMPRESSED:
            continue
        value = program.array(operation.inputs[_COMPRESSED[operation.type]].arguments[0].value)
        if value is None:
            continue  # so few codes that they stand in the program itself
        codes = torch.from_numpy(value.reshape(layout.shape).astype(np.int8 if layout.signed else np.uint8))
        found[name] = (reordered(codes) if name in kept["in_gate_order"] else codes).numpy()
    return found


def specification(artifact: Path):
    from quant.backends._coreml_package import SPECIFICATION, coremltools

    return coremltools().proto.Model_pb2.Model.FromString((artifact / SPECIFICATION).read_bytes())


def kept_in(model) -> dict:
    return json.loads(model.description.metadata.userDefined[KEY])
