"""A model saved for MLX: the folder it is in, and the function it is when loaded."""

import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from quant.backends import _mlx_activations, _mlx_weights, evidence_of
from quant.backends._mlx_blas import NOTE, mx, set_threads
from quant.backends._mlx_program import DTYPES, Program
from quant.nodes import ATTENTION, Parameter, data_of, references
from quant.reading import readable
from quant.storage import graph_from_json

WEIGHTS = "model.safetensors"

_GRAPH, _CONFIG = "graph.json", "config.json"
_UNREADABLE, _REMEDY = "{} holds no model for MLX", "compile it again"
_NO_THREADS = "MLX offers no number of threads here: it takes those it finds."
_DEQUANTIZED = "Quantized weights are dequantized on loading: this device has no fast kernels for packed ones."
_NOT_PACKED = "MLX's packing cannot express some quantized weights: they are dequantized on loading."
_NO_INTEGERS = "MLX has no integer kernels: quantized activations are rounded to codes and computed with in float."
_HALF = "Products of half-precision values are computed in float32 and rounded: this device has no kernels for them."


def write(folder: Path, graph: dict, config: dict, tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Tables may share storage, which the file format refuses.
    own = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    save_file(own, folder / WEIGHTS, metadata={"format": "mlx"})
    (folder / _GRAPH).write_text(json.dumps(graph))
    (folder / _CONFIG).write_text(json.dumps(config))


def read(folder: Path) -> tuple[dict, dict]:
    """Return the graph and the configuration of a saved model or template.

    Raises:
        ValueError: the folder holds neither.
    """
    with readable(_UNREADABLE.format(folder), _REMEDY):
        graph, config = (json.loads((folder / name).read_text()) for name in (_GRAPH, _CONFIG))
        return dict(graph), dict(config)


class Executable:
    """A saved model in MLX's memory, ready to run."""

    untimed_reason = None

    def __init__(self, folder: Path, threads: int, device: mx.Device, compiled: bool) -> None:
        self.path, self._device, self._threads = folder, device, threads
        self._on_gpu = device.type == mx.gpu
        document, self._config = read(folder)
        self._has_threads = set_threads(threads)
        with readable(_UNREADABLE.format(folder), _REMEDY), mx.stream(device):
            self._graph = graph_from_json(document)
            program = self._load()

        def outputs(*inputs: mx.array) -> list[mx.array]:
            return [output.astype(mx.float32) for output in program(*inputs)]

        self._program = program
        self._run = mx.compile(outputs) if compiled else outputs

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Run one batch; outputs are float32.

        Raises:
            ValueError: not as many arrays as the model has inputs, or one of another shape.
        """
        self._check(inputs)
        set_threads(self._threads)
        with mx.stream(self._device):
            outputs = self._run(*(mx.array(np.asarray(x)) for x in inputs))
            mx.eval(outputs)
        return [np.array(output) for output in outputs]

    def step(self, *inputs: np.ndarray | mx.array) -> tuple[np.ndarray, list[mx.array]]:
        """Run one batch; the outputs but the first stay arrays of the device.

        Nothing is compiled, because what grows from step to step would be compiled at every one.

        Raises:
            ValueError: as a call does.
        """
        self._check(inputs)
        set_threads(self._threads)
        with mx.stream(self._device):
            first, *others = self._program(*(mx.array(x) if isinstance(x, np.ndarray) else x for x in inputs))
            first = first.astype(mx.float32)
            mx.eval(first, others)
        return np.array(first), others

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of the model."""
        return sum(path.stat().st_size for path in self.path.iterdir())

    @property
    def evidence(self) -> str:
        return evidence_of(self.coverage())

    def coverage(self) -> dict[str, object]:
        """Return the shares of multiply-accumulates by kind of kernel, and of parameters that are quantized.

        An operator is native that multiplies with packed weights; one that was given dequantized weights, or whose
        activations are quantized, is simulated.
        """
        macs, nodes = self._config["macs"], self._quantized_nodes()
        total = sum(macs.values()) or 1
        native, simulated = (sum(macs.get(name, 0) for name in nodes.get(kind, ())) for kind in (True, False))
        quantized = sum(prod(entry["shape"]) for entry in self._config["weights"].values())
        return {
            "operators_native": native / total,
            "operators_simulated": simulated / total,
            "parameters_quantized": quantized / self._config["parameter_count"],
            "notes": self._notes(),
        }

    def _load(self) -> Program:
        dtype = DTYPES[self._config["dtype"]]
        arrays = mx.load(str(self.path / WEIGHTS))
        mx.eval(arrays)
        parameters = {name: self._parameter(name, arrays, dtype) for name in self._config["parameters"]}
        mx.eval([value if isinstance(value, mx.array) else value.parts for value in parameters.values()])
        return Program(self._graph, parameters, dtype, self._quantizers(arrays))

    def _parameter(
        self, name: str, arrays: dict[str, mx.array], dtype: mx.Dtype
    ) -> "mx.array | _mlx_weights.PackedWeight":
        if name not in self._config["weights"]:
            value = arrays[name]
            return value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value
        weight = _mlx_weights.decode(self._config["weights"][name], arrays, dtype)
        if isinstance(weight, _mlx_weights.PackedWeight):
            return weight if self._on_gpu else weight.dequantize()
        arrangement = self._config["arrangements"].get(name)
        weight = weight if arrangement is None else _mlx_weights.arrange(weight, arrangement)
        return mx.array(weight.numpy()).astype(dtype)

    def _quantizers(self, arrays: dict[str, mx.array]) -> dict[tuple[str, int | str], Callable[[mx.array], mx.array]]:
        """Return one function per quantizer and layout, for each of the arguments it is for."""
        found = {}
        for entry in self._config["activations"]:
            of_layout = [_mlx_activations.decode(entry, arrays, channels_last) for channels_last in (False, True)]
            for node, position in entry["edges"]:
                value = data_of(self._graph.by_name[node], position)
                found[node, position] = of_layout[value.name in self._config["channels_last"]]
        return found

    def _quantized_nodes(self) -> dict[bool, list[str]]:
        """Return the nodes with quantized factors: True, those that multiply with packed weights, False, the others."""
        rounded = {
            node for entry in self._config["activations"] if entry["mode"] != "none" for node, _ in entry["edges"]
        }
        found: dict[bool, list[str]] = {True: [], False: []}
        for node in self._graph.nodes:
            weights = [
                self._config["weights"][reference.name]
                for reference in references(node.arguments)
                if isinstance(reference, Parameter) and reference.name in self._config["weights"]
            ]
            if weights or (node.operator == ATTENTION and node.name in rounded):
                packed = bool(weights) and self._on_gpu and all(entry["form"] != "codes" for entry in weights)
                found[packed and node.name not in rounded].append(node.name)
        return found

    def _notes(self) -> list[str]:
        on_cpu, weights = not self._on_gpu, self._config["weights"].values()
        notes = {
            NOTE: on_cpu,
            _NO_THREADS: on_cpu and not self._has_threads,
            _HALF: on_cpu and self._config["dtype"] != "float32",
            _DEQUANTIZED: on_cpu and weights,
            _NOT_PACKED: self._on_gpu and any(entry["form"] == "codes" for entry in weights),
            _NO_INTEGERS: self._config["activations"],
        }
        return [note for note, holds in notes.items() if note and holds]

    def _check(self, inputs: Sequence[np.ndarray]) -> None:
        names = self._graph.inputs
        if len(inputs) != len(names):
            raise ValueError(f"the model takes {len(names)} inputs ({', '.join(names)}), not {len(inputs)}.")
        for name, axes, value in zip(names, self._graph.dynamic_axes, inputs, strict=True):
            expected = [axes.get(axis, size) for axis, size in enumerate(self._graph.shapes[name])]
            shape = np.shape(value)
            if len(shape) != len(expected) or any(
                size != wanted for size, wanted in zip(shape, expected, strict=True) if isinstance(wanted, int)
            ):
                raise ValueError(f"the input {name!r} has shape {list(shape)}, but the model takes {expected}.")
