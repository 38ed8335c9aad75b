"""Whether ONNX Runtime's kernels for u8 activations and s8 weights add up right on this processor.

No setting keeps them from instructions the processor has, and none tells which they use: so they are tried.
"""

import functools

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quant.backends._onnx_session import open_session

NOTE = (
    "u8 x s8 kernels add pairs of products in 16 bits on this processor, and saturate on 8-bit weights: int8_reduced "
    "keeps to 7 bits."
)

_INNER, _OUTER = 64, 32
_OPSET, _IR = 13, 8


@functools.cache
def saturates(largest: int = 127) -> bool:
    """Whether products of the largest activation codes with weight codes of ``largest`` overflow."""
    weight = np.full((_INNER, _OUTER), largest, np.int8)
    weight[:, 1::2] = -largest
    activation = np.full((_OUTER, _INNER), 255, np.uint8)
    session = open_session(_product(weight).SerializeToString())
    (sums,) = session.run(None, {"activation": activation})
    return not np.array_equal(sums, activation.astype(np.int32) @ weight.astype(np.int32))


def _product(weight: np.ndarray) -> onnx.ModelProto:
    """Return a model that multiplies uint8 [n, in] with ``weight`` int8 [in, out] into int32 [n, out]."""
    node = helper.make_node("MatMulInteger", ["activation", "weight"], ["sums"])
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("activation", TensorProto.UINT8, [None, weight.shape[0]])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, [None, weight.shape[1]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
