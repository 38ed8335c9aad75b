"""A saved Core ML package as protobuf messages and a file of weights, without the model it was converted from.

Programs are edited here below coremltools' graph passes, which would fold compressed weights back into plain ones.
"""

import contextlib
import io
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType

import numpy as np

from quant.reading import readable

PACKAGE = "model.mlpackage"
NAMES = "names.json"

SPECIFICATION = Path("Data") / "com.apple.CoreML" / "model.mlmodel"
_WEIGHTS = Path("Data") / "com.apple.CoreML" / "weights" / "weight.bin"
_WEIGHTS_IN_PROGRAM = "@model_path/weights/weight.bin"
_FILE_WORDS = {"fp32": "float"}  # how coremltools spells a type in the names of its file functions
_ALSO_CONVERTED = (
    "executorch",
    "libsvm",
    "sklearn",
    "tensorflow",
    "torchao",
    "torchaudio",
    "torchvision",
    "transformers",
    "xgboost",
)
"""Libraries that coremltools imports where they are installed, which may take longer than all the rest."""
_SMALLEST_STORED = 10  # elements; coremltools too writes shorter arrays into the program itself


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars, and remarks about other packages' versions, of coremltools to itself."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def coremltools() -> ModuleType:
    """Return the coremltools package, imported without the libraries whose models are not converted here."""
    with quiet(), _absent(*_ALSO_CONVERTED):
        import coremltools
    return coremltools


@contextlib.contextmanager
def _absent(*packages: str) -> Iterator[None]:
    """Let imports of packages fail, but of those imported before."""
    hidden = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for package in hidden:
            del sys.modules[package]


class Program:
    """The program of a ``.mlpackage``. Arrays are read when asked for.

    ``operations`` are the operations of its one function, in order; ``types`` the declared type of every value.
    """

    def __init__(self, package: Path) -> None:
        self.folder = package
        self.model = coremltools().proto.Model_pb2.Model()
        with readable(f"{package.parent} holds no Core ML model", "compile it again"):
            self.model.ParseFromString((package / SPECIFICATION).read_bytes())
        self.function = self.model.mlProgram.functions["main"]
        self.block = self.function.block_specializations[self.function.opset]
        self.operations = list(self.block.operations)
        self.types = {value.name: value.type for value in self.function.inputs}
        self.types |= {value.name: value.type for operation in self.operations for value in operation.outputs}

    @cached_property
    def constants(self) -> dict[str, object]:
        """The ``const`` operations by the name of their value."""
        return {op.outputs[0].name: op for op in self.operations if op.type == "const"}

    @cached_property
    def _reader(self) -> object:
        from coremltools.libmilstoragepython import _BlobStorageReader

        return _BlobStorageReader(str(self.folder / _WEIGHTS))

    def array(self, value: object) -> np.ndarray | None:
        """Return the content of a tensor value: flat, of its storage type; None for what is not a number."""
        word = type_word(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            read = getattr(self._reader, f"read_{_FILE_WORDS.get(word, word)}_data")
            content = read(value.blobFileValue.offset)
            return content.view(np.float16) if word == "fp16" else content
        tensor = value.immediateValue.tensor
        if word == "fp32":
            return np.array(tensor.floats.values, np.float32)
        if word == "fp16":
            return np.frombuffer(tensor.bytes.values, np.float16)
        return None


class Package(Program):
    """A package as the backend writes it, with its map of names beside it, read from ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / PACKAGE)
        with readable(f"{folder} holds no Core ML model", "compile it again"):
            self.names = dict(json.loads((folder / NAMES).read_text()))

    def save(self, folder: Path, names: dict, operations: list | None = None) -> None:
        """Write the package into ``folder``, with other operations if any; their weights are stored there already."""
        target = folder / PACKAGE
        if operations is not None:
            del self.block.operations[:]
            self.block.operations.extend(operations)
        (target / SPECIFICATION).write_bytes(self.model.SerializeToString())
        if target != self.folder:
            shutil.copyfile(self.folder / "Manifest.json", target / "Manifest.json")
        (folder / NAMES).write_text(json.dumps(names))


class WeightFile:
    """The weights of a package that is being written."""

    def __init__(self, folder: Path) -> None:
        from coremltools.libmilstoragepython import _BlobStorageWriter

        path = folder / PACKAGE / _WEIGHTS
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = _BlobStorageWriter(str(path))

    def store(self, array: np.ndarray, word: str) -> object:
        """Return ``array`` (codes as uint8 or int8, any shape) as a value of the type ``word``, for an operation."""
        from coremltools.converters.mil.backend.mil import helper
        from coremltools.converters.mil.mil import types

        builtin = _builtin(word)
        if array.size < _SMALLEST_STORED:
            return helper.create_tensor_value(array.astype(types.nptype_from_builtin(builtin)))
        flat = np.ascontiguousarray(array).reshape(-1)
        write = getattr(self._writer, f"write_{_FILE_WORDS.get(word, word)}_data")
        offset = write(flat.view(np.uint16) if word == "fp16" else flat)
        primitive = helper.types_to_proto_primitive(builtin)
        return helper.create_file_value_tensor(_WEIGHTS_IN_PROGRAM, offset, array.shape, primitive)


def scalar(value: str | float | int, word: str) -> object:
    """Return text or a number of the type ``word`` as a value for an operation."""
    from coremltools.converters.mil.backend.mil import helper
    from coremltools.converters.mil.mil import types

    return helper.create_scalar_value(
        value if isinstance(value, str) else types.nptype_from_builtin(_builtin(word))(value)
    )


def declare(word: str, shape: tuple[int, ...] = ()) -> object:
    """Return the declared type of tensors of ``shape``; of a scalar without one."""
    from coremltools.converters.mil.backend.mil import helper

    return helper.create_valuetype_tensor(tuple(shape), helper.types_to_proto_primitive(_builtin(word)))


def type_word(value_type: object) -> str:
    """Return the element type of a declared tensor type: fp32, fp16, uint4 ..."""
    from coremltools.converters.mil.mil import types

    return types.builtin_to_string(types.PROTO_TO_BUILTIN_TYPE[value_type.tensorType.dataType])


def shape_of(value_type: object) -> tuple[int, ...]:
    """Return the declared sizes; 0 for one that varies."""
    return tuple(dimension.constant.size for dimension in value_type.tensorType.dimensions)


def input_name(operation: object, key: str | None) -> str | None:
    """Return the name of the value that ``operation`` takes as ``key``; None where it takes none."""
    if key is None or key not in operation.inputs or len(operation.inputs[key].arguments) != 1:
        return None
    return operation.inputs[key].arguments[0].name or None


def tensor_type(word: str, like: object) -> object:
    """Return the declared type ``like`` with other elements."""
    from coremltools.converters.mil.backend.mil import helper

    changed = type(like)()
    changed.CopyFrom(like)
    changed.tensorType.dataType = helper.types_to_proto_primitive(_builtin(word))
    return changed


def operation(kind: str, name: str, output_type: object, **inputs: object) -> object:
    """Return an operation with one output called ``name``.

    Inputs are names of values, several of them, or values themselves; a ``const`` takes its value as ``val``.
    """
    from coremltools.converters.mil.backend.mil.helper import create_scalar_value

    messages = coremltools().proto.MIL_pb2
    made = messages.Operation(type=kind, outputs=[messages.NamedValueType(name=name, type=output_type)])
    made.attributes["name"].CopyFrom(create_scalar_value(name))
    for key, value in inputs.items():
        if kind == "const":
            made.attributes[key].CopyFrom(value)
        elif isinstance(value, str | tuple):
            for source in (value,) if isinstance(value, str) else value:
                made.inputs[key].arguments.add().name = source
        else:
            made.inputs[key].arguments.add().value.CopyFrom(value)
    return made


def _builtin(word: str) -> object:
    from coremltools.converters.mil.mil import types

    return types.str if word == "string" else types.string_to_builtin(word)
