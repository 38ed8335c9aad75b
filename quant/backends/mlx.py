"""MLX: Apple's array library, on Metal, CUDA and CPUs.

A model is a folder: ``graph.json``, the float graph in MLX's channels-last layout; ``model.safetensors``, its weights,
quantized ones as ``mlx.nn`` names and packs them; ``config.json``, how each is stored. On a GPU quantized weights stay
packed and ``mx.quantized_matmul`` multiplies with them. Its CPU kernels are scalar, and products with weights
dequantized beforehand many times faster: there a quantized operator is simulated, and reported so.
"""

from collections.abc import Collection, Iterable, Sequence
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np
from safetensors import safe_open
from torch import Tensor

from quant.backends import _mlx_activations, _mlx_weights
from quant.backends._mlx_blas import mx
from quant.backends._mlx_executable import WEIGHTS, Executable, read, write
from quant.backends._mlx_layout import channels_last
from quant.backends._mlx_program import Program, function_of
from quant.graph import FloatGraph, QuantizedModel, shared_quantizers
from quant.storage import graph_to_json

TARGETS = {"mlx": {}, "mlx_cpu": {"device": "cpu", "platform": "darwin"}}
REQUIRES = {"mlx": "pip install 'mlx[cpu]'"}
EXECUTES = {
    "float": ["fp32", "fp16", "bf16"],
    "weight_only": [
        "int8", "int6", "int5", "int4", "int3", "int2",
        "e4m3", "e5m2", "mxfp8", "mxfp4", "nvfp4", "nf4",
        "lut8", "lut6", "lut4", "lut3", "lut2",
        "mixed_3p5", "mixed_4", "mixed_4p5", "mixed_5", "mixed_6",
    ],
    "static": ["int8"],
    "dynamic": ["int8", "w4a8"],
}  # fmt: skip
REFUSES = {}
NATIVE = {"native": {"int8": "mlx.core.quantize, groups of 64", "int4": "mlx.core.quantize, groups of 64"}}
DYNAMIC_GRANULARITY = "token"
WIDTHS = [2, 3, 4, 5, 6, 8]
GROUP_BITS = {2: 32, 3: 32, 4: 32, 5: 64, 6: 64, 8: 64}
LOOSE_WIDTHS = [4, 8]
SETTINGS = {"compiled": (None, True, False)}


def version() -> str:
    return f"mlx {package_version('mlx')}"


def template(graph: FloatGraph, folder: Path, precision: str) -> None:
    """Write the float graph in MLX's layout, after checking the shape of every value against the graph's.

    ``precision`` is settled when tables are spliced in.

    Raises:
        ValueError: an operator, or some use of it, is unknown; the sentence names the node.
    """
    source = graph.graphs["forward"]
    for node in source.nodes:
        function_of(node)
    layout = channels_last(source, {name: value.ndim for name, value in graph.parameters.items()})
    parameters = {name: _arranged(name, value, layout.arrangements) for name, value in graph.parameters.items()}
    config = {
        "weights_sha256": graph.weights_sha256,
        "parameters": list(parameters),
        "parameter_count": graph.parameter_count,
        "arrangements": layout.arrangements,
        "channels_last": sorted(layout.channels_last),
        "kinds": {name: sorted({op.kind for _, op in uses}) for name, uses in graph.quantizable().items()},
        "macs": {node.name: macs for node in source.nodes if (macs := graph.macs("forward", node))},
    }
    program = Program(layout.graph, {name: _array(value) for name, value in parameters.items()})
    _check_shapes(program, [_array(example) for example in graph.examples["forward"]], layout.channels_last)
    write(folder, graph_to_json(layout.graph), config, parameters)


def compile(quantized: QuantizedModel, template: Path, folder: Path) -> None:
    """Splice the tables into the template and write the model into ``folder``.

    Raises:
        ValueError: the template was made of other weights.
    """
    graph, config = read(template)
    if config["weights_sha256"] != quantized.graph.weights_sha256:
        raise ValueError(f"{template} was made from other weights: make the template of this model.")
    tensors, weights, activations = {}, {}, []
    for name, weight in quantized.weights.items():
        weights[name], stored = _mlx_weights.encode(name, weight, config["parameters"])
        tensors |= stored
    for name, value in quantized.floats.items():
        tensors[name] = _arranged(name, value, config["arrangements"])
    for quantizer, edges in shared_quantizers(quantized):
        entry, stored = _mlx_activations.encode(f"mlx.activation_{len(activations)}", quantizer)
        activations.append(entry | {"edges": [edge[1:] for edge in edges]})
        tensors |= stored
    tables = {*quantized.weights, *quantized.floats}
    tensors |= _tensors(template, [name for name in config["parameters"] if name not in tables])
    config |= {"dtype": quantized.scheme.float_dtype, "weights": weights, "activations": activations}
    write(folder, graph, config, tensors)


def compile_native(
    method: str, bits: str, template: Path, folder: Path, calibration: Sequence[tuple[np.ndarray, ...]]
) -> None:
    """Write what ``mlx.nn.quantize`` makes of the model: all linear layers and embeddings it can group by 64.

    Raises:
        ValueError: MLX has no such quantizer.
    """
    if bits not in NATIVE.get(method, {}):
        raise ValueError(f"MLX has no quantizer for {method} {bits}: use native int8 or int4.")
    graph, config = read(template)
    names, group = config["parameters"], _mlx_weights.NATIVE_GROUP
    tensors, weights = _tensors(template, names), {}
    for name, kinds in config["kinds"].items():
        if set(kinds) <= {"embedding", "linear"} and tensors[name].shape[-1] % group == 0:
            width = int(bits.removeprefix("int"))
            weights[name], stored = _mlx_weights.encode_native(name, tensors[name], width, names)
            tensors |= stored
    config |= {"dtype": "float32", "weights": weights, "activations": []}
    write(folder, graph, config, tensors)


def load(folder: Path, threads: int, device: str | None, compiled: bool | None = None) -> Executable:
    """Load a model from disk onto ``device``: "cpu", "gpu", or MLX's default, which is a GPU where it has one.

    ``threads`` holds for products on a CPU; all else there uses one. ``compiled`` tells whether ``mx.compile`` fuses
    operators: as a rule on a GPU alone, because on a CPU it calls the system's C++ compiler.

    Raises:
        ValueError: the folder holds no model.
    """
    chosen = mx.default_device() if device is None else mx.Device(getattr(mx, device))
    return Executable(folder, threads, chosen, chosen.type == mx.gpu if compiled is None else compiled)


def _check_shapes(program: Program, examples: Sequence[mx.array], channels_last: Collection[str]) -> None:
    """Compare the shape of every value with the graph's; nothing is computed, MLX knows shapes before values."""
    values = program.run(*examples)
    for name in (*program.graph.inputs, *(node.name for node in program.graph.nodes)):
        try:
            _, value = next(values)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            node = program.graph.by_name[name]
            raise ValueError(f"the mlx backend cannot run {node.operator!r} as node {name!r} does: {error}") from error
        expected = program.graph.shapes.get(name)
        if expected is None or not isinstance(value, mx.array):
            continue
        if name in channels_last:
            expected = [expected[0], *expected[2:], expected[1]]
        if list(value.shape) != expected:
            operator = program.graph.by_name[name].operator
            raise ValueError(f"{operator!r} gives node {name!r} the shape {value.shape} in MLX instead of {expected}.")


def _array(value: Tensor) -> mx.array:
    return mx.array((value.float() if value.is_floating_point() else value).numpy())


def _arranged(name: str, value: Tensor, arrangements: dict[str, int]) -> Tensor:
    """Return a float parameter as MLX's operators take it."""
    return _mlx_weights.arrange(value, arrangements[name]) if name in arrangements else value.contiguous()


def _tensors(template: Path, names: Iterable[str]) -> dict[str, Tensor]:
    with safe_open(template / WEIGHTS, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}
