"""The conversion to TensorFlow Lite's format, in the environment that has the converter.

``python -m quant.exporting.litert_conversion FOLDER``: the folder has ``program.pt2``, a program of operators that the
converter knows with one sample as its example, and ``codes.npz``, the codes of its weights as int8. It gets
``model.tflite``, and ``tensors.json``: for each weight whose codes the converter kept, the number of the tensor that
holds them, and the order it has put the axes in.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

MODEL, TENSORS = "model.tflite", "tensors.json"

_ORDERS = {2: [(0, 1), (1, 0)], 3: [(0, 1, 2), (0, 2, 1)], 4: [(0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0)]}
"""As they were; channels last; and, for convolutions of one channel each, those channels last."""


def main(arguments: list[str]) -> None:
    import litert_torch
    import torch
    import torch.ao.quantization.fx._decomposed
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    folder = Path(arguments[0])
    program = torch.export.load(folder / "program.pt2")
    # The quantizer chooses nothing: this is how the converter is told to fuse the rounding that the program has.
    quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))
    example = tuple(value[:1] for value in program.example_inputs[0])
    converted = litert_torch.convert(program.module(), example, quant_config=QuantConfig(pt2e_quantizer=quantizer))
    converted.export(str(folder / MODEL))
    with np.load(folder / "codes.npz") as codes:
        kept = _kept(dict(codes), constants(folder / MODEL))
    (folder / TENSORS).write_text(json.dumps(kept))


def constants(model: Path) -> dict[int, np.ndarray]:
    """Return the tensors of integers that a model holds, by their numbers."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(model), experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    found = {}
    for entry in interpreter.get_tensor_details():
        if entry["dtype"] is np.int8 and entry["shape"].size:
            found[entry["index"]] = interpreter.get_tensor(entry["index"])
    return found


def _kept(codes: Mapping[str, np.ndarray], found: Mapping[int, np.ndarray]) -> dict[str, list]:
    """Return [number, order of axes] of the tensor that holds each weight; two with equal codes may share one."""
    kept = {}
    for name, own in codes.items():
        for order in _ORDERS.get(own.ndim, [tuple(range(own.ndim))]):
            moved = own.transpose(order).reshape(-1)
            same = [index for index, tensor in found.items() if np.array_equal(tensor.reshape(-1), moved)]
            if same:
                kept[name] = [same[0], list(order)]
                break
    return kept


if __name__ == "__main__":
    main(sys.argv[1:])
