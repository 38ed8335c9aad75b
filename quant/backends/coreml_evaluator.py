"""Reference evaluator of a saved Core ML program: what a ``.mlpackage`` computes, on any operating system.

The package is read from disk, weights that are stored compressed are decompressed once, and each MIL operator is
computed in torch float32. Core ML itself runs only on Apple's systems; this says what the saved model means, not how
fast it is, nor in what order a device would add. :func:`supported` lists the operators it knows.

    run = Evaluator("model.mlpackage")
    outputs = run({"x": array})
    state = run.make_state()  # of a program that keeps a cache; each call goes on from the one before
    outputs = run({"token": token}, state=state)
"""

import inspect
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quant.backends import (  # noqa: F401 - they enter their operators
    _coreml_compression,
    _coreml_indexing,
    _coreml_layers,
    _coreml_recurrent,
)
from quant.backends._coreml_operators import OPERATORS
from quant.backends._coreml_package import coremltools
from quant.backends._coreml_states import Cell
from quant.reading import readable

# A constant given for one of these takes part in the computation as an array; others keep their Python type.
_ARRAYS = {"x", "y", "a", "b", "cond", "indices", "input", "values"}
# A constant given for one of these describes a shape.
_SHAPES = {
    "axes",
    "begin",
    "begin_mask",
    "crop_height",
    "crop_width",
    "dilations",
    "end_mask",
    "kernel_sizes",
    "output_shape",
    "pad",
    "perm",
    "reps",
    "shape",
    "size",
    "split_sizes",
    "squeeze_mask",
    "stride",
    "strides",
}


class _Step(NamedTuple):
    function: partial
    arguments: dict[str, str | list[str]]
    outputs: list[str]
    halves: list[bool]
    release: list[str]


class Evaluator:
    """A saved program, ready to run.

    ``half`` rounds every value that the program declares as fp16 to half precision, inputs and states among them:
    operators compute in float32 and their results are rounded once, to nearest, ties to even, beyond 65504 to infinity.
    Without it such programs are evaluated in float32 throughout.

    inputs, outputs, states  names, in the program's order

    Raises:
        ValueError: the program holds an operator the evaluator does not know, or several functions.
    """

    def __init__(self, package: Path | str, half: bool = False) -> None:
        with readable(f"{package} holds no readable program", "compile it again"):
            program = _read(Path(package))
        if list(program.functions) != ["main"]:
            raise ValueError(
                f"{package} holds the functions {', '.join(program.functions)}: only one, main, is evaluated."
            )
        function = program.functions["main"]
        self._state_shapes = {name: _state_shape(value) for name, value in function.inputs.items() if _is_state(value)}
        self.states = tuple(self._state_shapes)
        self.inputs = tuple(name for name in function.inputs if name not in self._state_shapes)
        self._half_inputs = {name for name in self.inputs if half and _is_half(function.inputs[name])}
        self.outputs = tuple(output.name for output in function.outputs)
        self._constants: dict[str, object] = {}
        self._steps: list[_Step] = []
        operations = list(function.operations)
        _refuse_unknown(operations)
        with readable(f"{package} holds a program that cannot be computed", "compile it again"):
            for operation in operations:
                self._add(operation, half)
        self._release_after_last_use()

    @torch.inference_mode()
    def __call__(
        self,
        values: Mapping[str, Tensor | np.ndarray],
        keep: Collection[str] = (),
        state: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the outputs by name for inputs by name, and the other values named in ``keep``.

        ``state``, from :meth:`make_state`, is what the program keeps from call to call; a call changes it.

        Raises:
            ValueError: an input or the state is missing.
        """
        missing = [name for name in self.inputs if name not in values]
        if missing:
            raise ValueError(f"input {missing[0]!r} is missing: the program takes {', '.join(self.inputs)}.")
        missing = [name for name in self.states if name not in (state or {})]
        if missing:
            raise ValueError(f"the program keeps the state {missing[0]!r} from call to call: pass state=make_state().")
        live: dict[str, Tensor | Cell] = {name: torch.as_tensor(values[name]) for name in self.inputs}
        live |= {name: live[name].half().float() for name in self._half_inputs}
        live |= {name: Cell(state, name) for name in self.states}
        kept = {name: value for name, value in live.items() if name in keep}
        for step in self._steps:
            arguments = {
                name: [self._fetch(part, live) for part in source] if isinstance(source, list) else live[source]
                for name, source in step.arguments.items()
            }
            live |= _results(step, step.function(**arguments))
            kept |= {name: live[name] for name in step.outputs if name in keep}
            for name in step.release:
                del live[name]
        return kept | {name: self._fetch(name, live) for name in self.outputs}

    def make_state(self) -> dict[str, Tensor]:
        """Return the state that a program starts from: zeros, by name."""
        return {name: torch.zeros(shape) for name, shape in self._state_shapes.items()}

    def _fetch(self, name: str, live: dict[str, Tensor | Cell]) -> Tensor | Cell:
        return live[name] if name in live else _array(self._constants[name])

    def _add(self, operation: object, half: bool) -> None:
        """Append one operation; what depends on constants alone is computed now and becomes a constant."""
        outputs = [output.name for output in operation.outputs]
        if operation.op_type == "const":
            self._constants[outputs[0]] = _constant(operation.outputs[0].val)
            return
        bound, arguments = {}, {}
        for name, source in operation.inputs.items():
            if isinstance(source, list | tuple):
                names = [part.name for part in source]
                if all(part in self._constants for part in names):
                    bound[name] = [_array(self._constants[part]) for part in names]
                else:
                    arguments[name] = names
            elif source is not None and source.name in self._constants:
                bound[name] = _bind(name, self._constants[source.name])
            elif source is not None:
                arguments[name] = source.name
        halves = [half and _is_half(output) for output in operation.outputs]
        step = _Step(partial(OPERATORS[operation.op_type], **bound), arguments, outputs, halves, [])
        if arguments:
            self._steps.append(step)
        else:
            with torch.inference_mode():
                self._constants |= _results(step, step.function())

    def _release_after_last_use(self) -> None:
        last: dict[str, _Step] = {}
        for step in self._steps:
            for source in step.arguments.values():
                last |= dict.fromkeys(source if isinstance(source, list) else [source], step)
            last |= dict.fromkeys(step.outputs, step)
        for name, step in last.items():
            if name not in self._constants and name not in self.outputs:
                step.release.append(name)


def supported() -> list[str]:
    """Return the names of the MIL operators the evaluator knows."""
    return sorted([*OPERATORS, "const"])


def operator_table() -> str:
    """Return the operators with their arguments, and where they are evaluated in part only how far, as Markdown."""
    rows = ["| operator | arguments | remarks |", "|---|---|---|", "| `const` | `val` | |"]
    for name, function in sorted(OPERATORS.items()):
        arguments = [key for key in inspect.signature(function).parameters if key != "function"]
        remarks = " ".join((inspect.getdoc(function) or "").split()).replace("``", "`")
        rows.append(f"| `{name}` | {', '.join(f'`{key}`' for key in arguments)} | {remarks} |".replace("|  |", "| |"))
    return "\n".join(rows)


def _read(package: Path) -> object:
    specification = coremltools().models.utils.load_spec(str(package))
    from coremltools.converters.mil.frontend.milproto.load import load

    weights = package / "Data" / "com.apple.CoreML" / "weights"
    return load(specification, specification.specificationVersion, str(weights))


def _refuse_unknown(operations: list) -> None:
    for operation in operations:
        if operation.op_type != "const" and operation.op_type not in OPERATORS:
            raise ValueError(
                f"the reference evaluator does not know the Core ML operator {operation.op_type!r} "
                f"(of output {operation.outputs[0].name!r}): add it to quant/backends/_coreml_operators.py."
            )


def _results(step: _Step, result: Tensor | tuple) -> dict[str, Tensor]:
    results = result if isinstance(result, tuple) else (result,)
    return {
        name: value.half().float() if half else value
        for name, value, half in zip(step.outputs, results, step.halves, strict=True)
    }


def _is_half(variable: object) -> bool:
    from coremltools.converters.mil.mil import types

    return variable.dtype == types.fp16


def _is_state(variable: object) -> bool:
    from coremltools.converters.mil.mil import types

    return types.is_state(variable.sym_type)


def _state_shape(variable: object) -> tuple[int, ...]:
    return tuple(variable.sym_type.wrapped_type().get_shape())


def _constant(value: object) -> object:
    """Return the value of a constant: a tensor, or a Python number or text for what has no dimensions."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.ndim == 0:
        return array.item()
    wider = {np.dtype(np.float16): np.float32, np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}
    # A plain copy: types below a byte carry metadata that torch does not take.
    return torch.from_numpy(np.array(array, dtype=wider.get(array.dtype, array.dtype.type)))


def _array(constant: object) -> Tensor:
    if isinstance(constant, Tensor):
        return constant
    dtype = {bool: torch.bool, int: torch.int32}.get(type(constant), torch.float32)
    return torch.tensor(constant, dtype=dtype)


def _bind(name: str, constant: object) -> object:
    if name in _ARRAYS and not isinstance(constant, str):
        return _array(constant)
    if isinstance(constant, Tensor) and (name in _SHAPES or (name == "end" and constant.ndim)):
        return tuple(constant.tolist())
    return constant
