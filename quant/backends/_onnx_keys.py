"""Keys of an attention, transposed in one step and not scaled.

The exporter writes ``query @ key.T`` of four dimensions as reshaping the keys to three, transposing and reshaping them
back, and multiplies both factors by the root of the scale. A runtime copies the keys for each of these steps, in a
decoder all that it has read so far. One exchange of the last two axes it folds into the product or into the transpose
before, and the whole scale belongs to the query, which is shorter in a decoder.
"""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

_EXCHANGE_THREE, _EXCHANGE_FOUR = [0, 2, 1], [0, 1, 3, 2]


def simplify(model: ir.Model, attentions: Iterable[list[ir.Node]]) -> None:
    """Rewrite the keys of the attentions; each comes as the ONNX nodes that the exporter made of it, in order.

    One that has another form is left as it is.
    """
    for nodes in attentions:
        for node in nodes:
            if _is_exchange(node):
                _transpose_once(model, node)
        product = next((node for node in nodes if node.op_type == "MatMul"), None)
        if product is not None:
            _scale_query_alone(model, *(value.producer() for value in product.inputs))
    RemoveUnusedNodesPass()(model)


def _is_exchange(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == _EXCHANGE_THREE


def _transpose_once(model: ir.Model, node: ir.Node) -> None:
    before, after = node.inputs[0].producer(), _only_user(node.outputs[0])
    reshaped = [each is not None and each.op_type == "Reshape" for each in (before, after)]
    if not all(reshaped) or before.inputs[0].shape is None or len(before.inputs[0].shape) != len(_EXCHANGE_FOUR):
        return
    once = ir.node("Transpose", [before.inputs[0]], {"perm": _EXCHANGE_FOUR}, name=node.name)
    once.outputs[0].name, once.outputs[0].type = after.outputs[0].name, after.outputs[0].type
    once.outputs[0].shape = after.outputs[0].shape
    once.metadata_props.update(node.metadata_props)
    model.graph.insert_before(after, once)
    ir.convenience.replace_all_uses_with(after.outputs[0], once.outputs[0])
    model.graph.remove(after, safe=True)


def _scale_query_alone(model: ir.Model, query: ir.Node | None, key: ir.Node | None) -> None:
    scales = [_constant_factor(query), _constant_factor(key)]
    if any(scale is None for scale in scales):
        return
    of_query, of_key = (scale.const_value.numpy() for scale in scales)
    scale = (of_query.astype(np.float64) * of_key).astype(of_query.dtype)
    name = f"{query.outputs[0].name}/scale"
    both = ir.Value(name=name, const_value=ir.tensor(scale, name=name))
    model.graph.register_initializer(both)
    query.replace_input_with(1, both)
    ir.convenience.replace_all_uses_with(key.outputs[0], key.inputs[0])
    model.graph.remove(key, safe=True)


def _constant_factor(node: ir.Node | None) -> ir.Value | None:
    """Return the one constant by which the node multiplies its first input, if one node alone reads the product."""
    if node is None or node.op_type != "Mul" or len(node.outputs[0].uses()) != 1:
        return None
    factor = node.inputs[1]
    return factor if factor.const_value is not None and factor.const_value.size == 1 else None


def _only_user(value: ir.Value) -> ir.Node | None:
    users = [node for node, _ in value.uses()]
    return users[0] if len(users) == 1 else None
