"""The conversion to TensorFlow Lite's format, in the environment that has the converter.

``python -m quant.exporting.litert_conversion FOLDER``: the folder has ``program.pt2``, a program of operators that the
converter knows with one sample as its example; ``held.json``, which of the program's buffers the file must hold as they
are, with whether four bits are enough for them; and ``codes.npz``, the codes as int8 of weights that the converter is
to keep by itself. It gets ``model.tflite``, and ``tensors.json``: for each weight whose codes are in the file, the
number of the tensor that holds them, and the order in which it has the axes.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from quant.exporting import litert_file
from quant.exporting.litert_file import MODEL, TENSORS

HELD, CODES, PROGRAM = "held.json", "codes.npz", "program.pt2"
PART = ".codes"
"""What follows the name of a weight in that of the buffer which has its codes."""

_ORDERS = {2: [(0, 1), (1, 0)], 3: [(0, 1, 2), (0, 2, 1)], 4: [(0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0)]}
"""As they were; channels last; and, for convolutions of one channel each, those channels last."""


class _OnBuffers(torch.nn.Module):
    """A module that is given some of its buffers behind its own inputs."""

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, list(names)
        self.training = False  # an exported module has no eval()

    def forward(self, *values: torch.Tensor) -> object:
        count = len(values) - len(self.names)
        buffers = dict(zip(self.names, values[count:], strict=True))
        return torch.func.functional_call(self.module, buffers, values[:count])


def main(arguments: list[str]) -> None:
    import litert_torch
    import torch.ao.quantization.fx._decomposed
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    folder = Path(arguments[0])
    program, held = torch.export.load(folder / PROGRAM), json.loads((folder / HELD).read_text())
    # The quantizer chooses nothing: this is how the converter is told to fuse the rounding that the program has.
    quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))
    inputs = tuple(value[:1] for value in program.example_inputs[0])
    buffers = {name: program.state_dict[name] for name in held}
    converted = litert_torch.convert(
        _OnBuffers(program.module(), held),
        (*inputs, *buffers.values()),
        quant_config=QuantConfig(pt2e_quantizer=quantizer),
    )
    converted.export(str(folder / MODEL))

    model = litert_file.read(folder / MODEL)
    named = litert_file.input_numbers(model)
    numbers = {name: named[f"args_{len(inputs) + index}"] for index, name in enumerate(held)}
    litert_file.hold(
        model,
        {number: buffers[name].numpy() for name, number in numbers.items()},
        {number: held[name] for name, number in numbers.items()},
    )
    litert_file.write(model, folder / MODEL)
    kept = {name.removesuffix(PART): [number, None] for name, number in numbers.items() if name.endswith(PART)}
    with np.load(folder / CODES) as codes:
        kept |= _kept(dict(codes), litert_file.integers(model))
    (folder / TENSORS).write_text(json.dumps(kept))


def _kept(codes: Mapping[str, np.ndarray], found: Mapping[int, np.ndarray]) -> dict[str, list]:
    """Return [number, order of axes] of the tensor that holds each weight; two with equal codes may share one."""
    kept = {}
    for name, own in codes.items():
        for order in _ORDERS.get(own.ndim, [tuple(range(own.ndim))]):
            moved = own.transpose(order).reshape(-1)
            same = [index for index, tensor in found.items() if np.array_equal(tensor, moved)]
            if same:
                kept[name] = [same[0], list(order)]
                break
    return kept


if __name__ == "__main__":
    main(sys.argv[1:])
