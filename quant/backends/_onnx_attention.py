"""Attention whose two products are quantized at run time.

ONNX has it as two MatMul, the first of which reads the query already scaled, and the key transposed. A factor changes
no code, so what the tables say of query and key holds for what that product reads.
"""

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from quant.backends._onnx_dynamic import Codes, codes_of
from quant.backends._onnx_editor import MICROSOFT, Editor
from quant.graph import ActivationQuantizer
from quant.nodes import Node

_PLACES = ((0, 1), ("p", 2))
"""Of each product, what its two factors are called in the tables."""

Quantizers = Mapping[int | str, ActivationQuantizer]


def lower(
    editor: Editor, node: Node, nodes: Sequence[ir.Node], quantizers: Quantizers, multiply: Callable | None
) -> None:
    """Quantize the factors of both products among the ONNX ``nodes`` of ``node``.

    ``multiply`` makes an integer product of codes; without it the products stay float, of quantized numbers.

    Raises:
        ValueError: the factors are not all quantized, per tensor, or ONNX has the attention in another form.
    """
    products = [candidate for candidate in nodes if candidate.op_type == "MatMul"]
    suit = quantizers.keys() == {0, 1, 2, "p"} and all(map(_suits, quantizers.values()))
    if len(products) != len(_PLACES) or not suit:
        raise ValueError(
            f"ONNX quantizes the attention {node.name!r} at run time only with query, key, value and probabilities "
            "all in 8 bits per tensor."
        )
    for number, (product, places) in enumerate(zip(products, _PLACES, strict=True)):
        name = f"{node.name}/product_{number}"
        factors = [
            codes_of(editor, f"{name}/factor_{side}", value, quantizers[place].format)
            for side, (value, place) in enumerate(zip(product.inputs, places, strict=True))
        ]
        if multiply is not None:
            editor.replace_output(product.outputs[0], multiply(editor, name, *factors))
            continue
        for side, factor in enumerate(factors):
            product.replace_input_with(side, factor.real)


def integer_product(editor: Editor, name: str, left: Codes, right: Codes) -> ir.Value:
    """Return the product of codes that have one scale each."""
    inputs = [left.codes, right.codes, left.scale, right.scale, left.zero_point, right.zero_point]
    return editor.add("MatMulIntegerToFloat", inputs, name=f"{name}/in_integers", domain=MICROSOFT)


def _suits(quantizer: ActivationQuantizer) -> bool:
    format = quantizer.format
    per_tensor = quantizer.mode == "dynamic" and format.bits == 8 and format.granularity == "tensor"
    return per_tensor and quantizer.input_scale is None
