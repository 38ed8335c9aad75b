"""PyTorch, eager: int8 kernels of oneDNN where they exist, float arithmetic on dequantized numbers elsewhere.

W8A8 linear layers and convolutions run natively on a CPU whose kernels pass a test of exactness. Weight-only schemes
have no CPU kernel in torch: their weights are small on disk and dequantized when loaded.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from quant.backends import _torch_artifact as artifact
from quant.backends import _torch_native as torchao
from quant.backends import evidence_of
from quant.backends._torch_compiling import Compiled
from quant.backends._torch_lowering import Lowered, arranged, lower
from quant.backends._torch_program import assemble
from quant.graph import FloatGraph, QuantizedModel
from quant.nodes import Graph
from quant.reading import readable
from quant.scheme import Scheme
from quant.storage import load_graph, save_graph

TARGETS = {
    "torch": {},
    "torch_compile": {"needs": "compiler", "settings": {"compiled": True}, "opt_in": True},
    "torch_cuda": {
        "device": "cuda",
        "needs": "cuda",
        "build": ("torch", "lib/*torch_cuda*", "pip install torch, a build with CUDA as pytorch.org lists them"),
    },
    "torch_mps": {"device": "mps", "platform": "darwin"},
}
REQUIRES = {"torch": "pip install torch"}
EXECUTES = {
    "float": ["fp32", "fp16", "bf16"],
    "weight_only": [
        "int8", "int6", "int5", "int4", "int3", "int2",
        "e4m3", "e5m2", "mxfp8", "mxfp4", "nvfp4", "nf4",
        "lut8", "lut6", "lut4", "lut3", "lut2",
        "mixed_3p5", "mixed_4", "mixed_4p5", "mixed_5", "mixed_6",
    ],
    "static": ["int8", "int8_reduced"],
    "dynamic": [
        "int8", "int8_reduced", "w4a8",
        "int8_token_sym", "int8_token_asym", "int8_tensor_sym", "int8_tensor_asym",
    ],
}  # fmt: skip
REFUSES = {
    "native_static": "torch quantizes static int8 only through torch.compile (PT2E), half a minute or more per shape.",
}
NATIVE = {
    "native": {"int8": "torchao Int8WeightOnlyConfig", "int4": "torchao IntxWeightOnlyConfig, int4 in groups of 32"},
    "native_dynamic": {"int8": "torchao Int8DynamicActivationInt8WeightConfig"},
}
NATIVE_REQUIRES = {"torchao": "pip install torchao"}
SETTINGS = {"memory_format": ("contiguous", "channels_last"), "compiled": (False, True)}
INTEGER_KERNELS = True
DYNAMIC_GRANULARITY = "token"
WIDTHS = [2, 3, 4, 5, 6, 8]

_FINGERPRINT = "fingerprint.json"
_MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Executable:
    """A loaded artefact: one function of tensors."""

    path: Path
    evidence: str
    untimed_reason: str | None
    device: str
    threads: int
    memory_format: torch.memory_format
    graph: Graph
    dtypes: tuple[torch.dtype, ...]
    function: Callable[..., tuple]
    report: dict[str, object]

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Run one batch.

        Raises:
            ValueError: there are not as many inputs as the graph has, or one is empty or of another shape.
        """
        tensors = self._tensors(inputs)
        with torch.inference_mode():
            return [output.float().cpu().numpy() for output in self.function(*tensors)]

    def step(self, *inputs: np.ndarray | torch.Tensor) -> tuple[np.ndarray, list[torch.Tensor]]:
        """Run one batch; the outputs but the first stay tensors on the device.

        Raises:
            ValueError: as a call does.
        """
        tensors = self._tensors(inputs)
        with torch.inference_mode():
            first, *others = self.function(*tensors)
            return first.float().cpu().numpy(), others

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.iterdir())

    def coverage(self) -> dict[str, object]:
        return self.report

    def _tensors(self, inputs: Sequence[np.ndarray | torch.Tensor]) -> list[torch.Tensor]:
        _use_threads(self.threads)
        names = self.graph.inputs
        if len(inputs) != len(names):
            raise ValueError(f"the model takes {len(names)} inputs ({', '.join(names)}), not {len(inputs)}.")
        tensors = []
        for array, name, axes, dtype in zip(inputs, names, self.graph.dynamic_axes, self.dtypes, strict=True):
            _check_shape(array, name, ["any" if i in axes else size for i, size in enumerate(self.graph.shapes[name])])
            if isinstance(array, np.ndarray):
                writable = array if array.flags.writeable else array.copy()  # torch warns of memory it may not write
                array = torch.from_numpy(writable)
            tensors.append(arranged(array.to(self.device, dtype), self.memory_format))
        return tensors


def version() -> str:
    return f"torch {torch.__version__}"


def template(graph: FloatGraph, folder: Path, precision: str = "float32") -> None:
    """Write the float graph and its parameters; their type is chosen when compiling."""
    folder.mkdir(parents=True, exist_ok=True)
    save_graph(graph, folder)
    (folder / _FINGERPRINT).write_text(json.dumps({"weights_sha256": graph.weights_sha256}))


def compile(quantized: QuantizedModel, template: Path, folder: Path) -> None:
    """Write graph, codes and remaining floats into ``folder``.

    Raises:
        ValueError: the template belongs to other weights.
    """
    fingerprint = json.loads((template / _FINGERPRINT).read_text())["weights_sha256"]
    if fingerprint != quantized.graph.weights_sha256:
        raise ValueError(f"{template} was made from other weights than this model's: make the template again.")
    artifact.write(quantized, folder)


def compile_native(
    method: str, bits: str, template: Path, folder: Path, calibration: Sequence[tuple[np.ndarray, ...]] = ()
) -> None:
    """Write what torchao makes of the linear layers; it needs no calibration.

    Raises:
        ValueError: torchao has no such quantizer here, or the model has no linear layer for it.
    """
    graph = load_graph(template)
    quantized = torchao.quantize(graph, method, bits)
    if not quantized:
        raise ValueError("torchao quantizes linear layers only, and this model has none: use another method.")
    scheme = Scheme(bits, "dynamic" if method == "native_dynamic" else "weight_only")
    artifact.write(QuantizedModel(graph, scheme), folder, native=(method, bits), omit=quantized)
    torchao.save(quantized, folder)


def load(
    folder: Path,
    threads: int,
    device: str | None = None,
    compiled: bool = False,
    memory_format: str = "contiguous",
) -> Executable:
    """Load an artefact and run it with so many threads.

    Args:
        compiled: have torch.compile make code of it at the first call, which takes half a minute and a C++ compiler.
        memory_format: how images and kernels of convolutions lie in memory, "contiguous" or "channels_last".

    Raises:
        ValueError: the artefact is damaged.
    """
    _use_threads(threads)
    folder, device = Path(folder), device or "cpu"
    quantized, native = artifact.read(folder)
    replaced = torchao.load(folder) if native else {}
    layout = _MEMORY_FORMATS[memory_format]
    with readable(f"{folder} holds no torch artefact that can run", "compile the model again"):
        lowered = lower(quantized, device, replaced, layout, compiled)
    by_torchao = {edge[1] for name in replaced for edge in quantized.graph.consumers(name)}
    on_integers = native in torchao.RUNS_ON_INTEGERS and device == "cpu"
    (lowered.native if on_integers else lowered.simulated).update(by_torchao)
    graph = quantized.graph.graphs["forward"]
    float_dtype = getattr(torch, quantized.scheme.float_dtype)
    examples = quantized.graph.examples["forward"]
    report = _coverage(quantized, lowered, native)
    function = assemble(graph.inputs, lowered.calls, graph.outputs)
    if compiled:
        function = Compiled(function, graph)
        report["notes"].append("torch.compile makes its code at the first call in every process.")
    return Executable(
        path=folder,
        evidence=evidence_of(report),
        untimed_reason=None,
        device=device,
        threads=threads,
        memory_format=layout,
        graph=graph,
        dtypes=tuple(float_dtype if example.is_floating_point() else example.dtype for example in examples),
        function=function,
        report=report,
    )


def _use_threads(threads: int) -> None:
    """Set how many threads torch computes with, which is one number for the whole process."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _check_shape(array: np.ndarray | torch.Tensor, name: str, expected: list[int | str]) -> None:
    if 0 in array.shape:
        raise ValueError(f"input {name!r} is empty: pass at least one sample.")
    if len(expected) != array.ndim or any(
        e not in ("any", size) for e, size in zip(expected, array.shape, strict=True)
    ):
        raise ValueError(f"input {name!r} has shape {list(array.shape)}, but the model takes {expected}.")


def _coverage(quantized: QuantizedModel, lowered: Lowered, native: tuple[str, str] | None) -> dict[str, object]:
    graph = quantized.graph
    work = {node.name: graph.macs("forward", node) for node in graph.graphs["forward"].nodes}
    total = sum(work.values()) or 1
    notes = list(lowered.notes)
    if any(work[name] for name in lowered.simulated):
        when = "by torchao at every call" if native else "when loaded"
        notes.append(f"Weights without a kernel are dequantized {when}, and their operators compute in float.")
    if native and native[1] == "int4":
        notes.append("torchao keeps int4 codes in a byte each on a CPU.")
    return {
        "operators_native": sum(work[name] for name in lowered.native) / total,
        "operators_simulated": sum(work[name] for name in lowered.simulated) / total,
        "notes": notes,
    }
