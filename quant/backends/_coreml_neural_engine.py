"""Which operators of a saved Core ML program the Neural Engine takes, by what others published of it.

Untested: no Mac has run this. Apple lists no operators, and only ``MLComputePlan`` on a device tells where one runs.
Sources: the operator catalogue of ANEForge, which tried the operators of Core ML's language on chips from M1 to M5; the
guide of coremltools on typed execution (float32 operators never run on the Neural Engine); and an answer of Apple's in
thread 724930 of its developer forums (of a range of sizes, the default alone runs there). Operators on which sources
differ are in neither list: look-ups by index pass in the catalogue's narrow cases, and run on the processor in the
compute plans that are published beside the models of WhisperKit.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from quant.backends._coreml_package import Package, input_name

_TAKES = {
    "abs", "add", "avg_pool", "batch_norm", "cast", "clip", "concat", "conv", "conv_transpose", "depth_to_space",
    "dequantize", "elu", "equal", "erf", "exp", "expand_dims", "fill", "fill_like", "floor_div", "gelu", "greater",
    "greater_equal", "instance_norm", "l2_norm", "layer_norm", "leaky_relu", "less", "less_equal", "linear", "log",
    "logical_not", "matmul", "max_pool", "maximum", "minimum", "mul", "not_equal", "pad", "pixel_shuffle", "pow",
    "prelu", "quantize", "real_div", "reduce_l1_norm", "reduce_l2_norm", "reduce_max", "reduce_mean", "reduce_min",
    "reduce_sum", "relu", "relu6", "reshape", "rsqrt", "scaled_dot_product_attention", "select", "sigmoid",
    "sigmoid_hard", "silu", "slice_by_index", "slice_by_size", "softmax", "softplus", "softsign", "space_to_depth",
    "split", "sqrt", "square", "squeeze", "stack", "sub", "tanh", "threshold", "thresholded_relu", "tile", "transpose",
}  # fmt: skip
_REFUSES = {
    "band_part", "gru", "logical_and", "logical_or", "logical_xor", "lstm", "mod", "non_zero", "one_hot", "range_1d",
    "reduce_prod", "reverse_sequence", "rnn", "scatter", "scatter_along_axis", "scatter_nd", "shape",
    "sliding_windows", "while_loop",
}  # fmt: skip
_MOVES = {"expand_dims", "reshape", "slice_by_index", "slice_by_size", "split", "squeeze", "transpose"}
_ADDS_CODES = {"add", "avg_pool", "conv", "conv_transpose", "linear", "matmul", "max_pool", "reduce_mean"}
_FUSED = {"clip", "relu", "relu6"}
"""Operators that become part of the one before them, whose result they cut off."""


def forecast(folder: Path) -> list[str]:
    """Return sentences on what the Neural Engine would take of the package in ``folder``."""
    package = Package(folder)
    counts, macs = Counter(), Counter()
    for operation in package.operations:
        if operation.outputs and operation.type != "const" and not operation.type.startswith("constexpr_"):
            counts[operation.type] += 1
            macs[operation.type] += package.names["macs"].get(operation.outputs[0].name, 0)
    total = sum(macs.values()) or 1
    taken = sum(macs[kind] for kind in counts if kind in _TAKES) / total
    sentence = f"Neural Engine (by published lists, untested): takes {100 * taken:.0f} % of the multiply-accumulates"
    for word, kinds in (("not", counts.keys() & _REFUSES), ("perhaps", counts.keys() - _TAKES - _REFUSES)):
        if kinds:
            sentence += f", {word} {_listed(kinds, counts)}"
    return [f"{sentence}.", *_integers(package), *_conditions(package)]


def _integers(package: Package) -> list[str]:
    """Return what a program with quantized inputs computes in integers, and what interrupts that."""
    quantizers = [operation for operation in package.operations if operation.type == "quantize"]
    if not quantizers:
        return []
    kinds: dict[str, str] = {}
    macs, between = Counter(), Counter()
    for operation, values, has_weight in _computing(package):
        found = _kind(operation.type, {kinds.get(name, "float") for name in values})
        kinds[operation.outputs[0].name] = found
        in_integers = found == "sum" and has_weight
        macs[in_integers] += package.names["macs"].get(operation.outputs[0].name, 0)
        if found == "float" and operation.type not in _MOVES:
            between[operation.type] += 1
    share = macs[True] / (macs.total() or 1)
    sentence = f"In 8 bits are weights and inputs of {100 * share:.0f} % of the multiply-accumulates"
    sentences = [f"{sentence}; in float, {_listed(set(between), between)}." if between else f"{sentence}."]
    moved = sum(input_name(operation, "zero_point") is not None for operation in quantizers)
    if moved:
        why = "it is not known to compute in int8 with them: int8_sym has none"
        sentences.append(f"{moved} of {len(quantizers)} quantized values have zero points, and {why}.")
    return sentences


def _computing(package: Package) -> Iterator[tuple[object, list[str], bool]]:
    """Yield the operations that compute values, with the values that they read, and whether they read a weight."""
    makers = {value.name: operation.type for operation in package.operations for value in operation.outputs}
    weights = {name for name, kind in makers.items() if kind.startswith("constexpr_") and kind != "constexpr_cast"}
    constant = {name for name, kind in makers.items() if kind == "const" or kind.startswith("constexpr_")}
    for operation in package.operations:
        if operation.outputs and operation.outputs[0].name not in constant and operation.type != "quantize":
            read = {input_name(operation, key) for key in operation.inputs} - {None}
            yield operation, sorted(read - constant), bool(read & weights)


def _kind(operator: str, read: set[str]) -> str:
    """Return what an operator makes of what it reads: "codes", or a "sum" of their products, or "float"."""
    if operator == "dequantize" or (operator in _MOVES and read == {"codes"}):
        return "codes"
    if (operator in _ADDS_CODES and read == {"codes"}) or (operator in _FUSED and read == {"sum"}):
        return "sum"
    return "float"


def _listed(kinds: set[str], counts: Counter[str]) -> str:
    return ", ".join(f"{kind} x {counts[kind]}" if counts[kind] > 1 else kind for kind in sorted(kinds))


def _conditions(package: Package) -> list[str]:
    """Return what holds of the program as a whole."""
    sentences = []
    if package.names["precision"] == "float32":
        sentences.append("It takes float16 programs alone, as coreml_ane makes them; this one is float32.")
    sizes = [value.type.multiArrayType for value in package.model.description.input]
    if any(bounds.lowerBound != bounds.upperBound for array in sizes for bounds in array.shapeRange.sizeRanges):
        shapes = " and ".join("x".join(map(str, array.shape)) for array in sizes)
        sentences.append(f"Of the sizes this program takes, {shapes} alone may run there.")
    return sentences
