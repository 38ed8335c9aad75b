"""ATen operators as functions of ``mlx.core`` arrays: those that work in any layout, and those that keep ATen's own.

Functions take the arguments of the operator of that name. Sizes are Python integers; dtypes are those of MLX.
Convolutions, pooling and norms over channels are in :mod:`quant.backends._mlx_spatial`.
"""

import math
from collections.abc import Callable, Sequence

from quant.backends._mlx_blas import mx
from quant.backends._mlx_weights import PackedWeight

Array = mx.array
Number = int | float


def in_float32(function: Callable) -> Callable:
    """Have a function of half-precision arrays compute in float32 and round its result, where MLX runs on a CPU.

    A GPU's half-precision kernels add up in float32 too. A CPU's are scalar, and up to twenty times slower than this.
    """

    def compute(x: Array, *rest: object, **keywords: object) -> Array:
        if x.dtype not in (mx.float16, mx.bfloat16) or mx.default_device() == mx.gpu:
            return function(x, *rest, **keywords)
        return function(_single(x), *map(_single, rest), **keywords).astype(x.dtype)

    return compute


def hardtanh(x: Array, low: Number = -1.0, high: Number = 1.0) -> Array:
    return mx.clip(x, low, high)


def clamp(x: Array, low: Number | Array | None = None, high: Number | Array | None = None) -> Array:
    x = x if low is None else mx.maximum(x, low)
    return x if high is None else mx.minimum(x, high)


def gelu(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return x * (1 + mx.erf(x * math.sqrt(0.5))) * 0.5


def elu(x: Array, alpha: Number = 1.0, scale: Number = 1.0, input_scale: Number = 1.0) -> Array:
    return scale * mx.where(x > 0, x, alpha * mx.expm1(mx.minimum(x, 0) * input_scale))


def softplus(x: Array, beta: Number = 1.0, threshold: Number = 20.0) -> Array:
    return mx.where(x * beta > threshold, x, mx.logaddexp(x * beta, 0) / beta)


def power(x: Array | Number, exponent: Array | Number) -> Array:
    return mx.square(x) if isinstance(exponent, Number) and exponent == 2 else mx.power(x, exponent)


def divide(x: Array, y: Array | Number, rounding_mode: str | None = None) -> Array:
    quotient = x / y
    if rounding_mode is None:
        return quotient
    whole = mx.floor(quotient) if rounding_mode == "floor" else mx.sign(quotient) * mx.floor(mx.abs(quotient))
    return whole.astype(x.dtype) if _is_integer(x) and _is_integer(y) else whole


def linear(x: Array, weight: "Array | PackedWeight", bias: Array | None = None) -> Array:
    if isinstance(weight, PackedWeight):
        return weight.multiply(x) if bias is None else weight.multiply(x) + bias
    return product(x, weight.T, bias)


@in_float32
def product(x: Array, y: Array, bias: Array | None = None) -> Array:
    """Return ``x @ y (+ bias)``."""
    return mx.matmul(x, y) if bias is None else mx.addmm(bias, x, y)


def embedding(weight: "Array | PackedWeight", indices: Array, *_: object) -> Array:
    return weight.rows(indices) if isinstance(weight, PackedWeight) else weight[indices]


@in_float32
def attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    on_probabilities: Callable[[Array], Array] | None = None,
) -> Array:
    """Attention over [..., heads, tokens, size]; grouped queries are what MLX does where heads differ in number.

    With ``on_probabilities``, which changes what weighs the values, heads must be as many.
    """
    operands = [x if x.ndim > 3 else x[:, None] for x in (query, key, value)]
    if is_causal:
        mask = mx.tril(mx.ones((query.shape[-2], key.shape[-2]), mx.bool_))
    if mask is not None and query.ndim == mask.ndim == 3:
        mask = mask[:, None]
    if mask is not None and mask.dtype != mx.bool_:
        mask = mask.astype(query.dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if on_probabilities is None:
        attended = mx.fast.scaled_dot_product_attention(*operands, scale=scale, mask=mask)
    else:
        scores = operands[0] @ mx.swapaxes(operands[1], -2, -1) * scale
        if mask is not None:
            scores = mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask
        attended = on_probabilities(mx.softmax(scores, axis=-1)) @ operands[2]
    return attended.reshape(*query.shape[:-1], value.shape[-1])


def layer_norm(
    x: Array,
    shape: Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *_: object,
) -> Array:
    if len(shape) == 1:
        return mx.fast.layer_norm(x, weight, bias, eps)
    axes = tuple(range(-len(shape), 0))
    normed = (x - x.mean(axes, keepdims=True)) * mx.rsqrt(x.var(axes, keepdims=True) + eps)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def rms_norm(x: Array, shape: Sequence[int], weight: Array | None = None, eps: float | None = None) -> Array:
    eps = mx.finfo(x.dtype).eps if eps is None else eps
    if len(shape) == 1:
        return mx.fast.rms_norm(x, weight, eps)
    normed = x * mx.rsqrt(mx.square(x).mean(tuple(range(-len(shape), 0)), keepdims=True) + eps)
    return normed if weight is None else normed * weight


def glu(x: Array, axis: int = -1) -> Array:
    values, gates = mx.split(x, 2, axis)
    return values * mx.sigmoid(gates)


def _single(argument: object) -> object:
    is_half = isinstance(argument, mx.array) and argument.dtype in (mx.float16, mx.bfloat16)
    return argument.astype(mx.float32) if is_half else argument


def _with_alpha(function: Callable) -> Callable:
    return lambda x, y, alpha=1: function(x, y if alpha == 1 else y * alpha)


_SELU = (1.6732632423543772, 1.0507009873554805)
_UNARY = {
    "abs": mx.abs,
    "ceil": mx.ceil,
    "cos": mx.cos,
    "erf": mx.erf,
    "exp": mx.exp,
    "expm1": mx.expm1,
    "floor": mx.floor,
    "isinf": mx.isinf,
    "isnan": mx.isnan,
    "log": mx.log,
    "log1p": mx.log1p,
    "log2": mx.log2,
    "logical_not": mx.logical_not,
    "neg": mx.negative,
    "reciprocal": mx.reciprocal,
    "relu": lambda x: mx.maximum(x, 0),
    "relu6": lambda x: mx.clip(x, 0, 6),
    "round": mx.round,
    "rsqrt": mx.rsqrt,
    "sigmoid": mx.sigmoid,
    "sign": mx.sign,
    "silu": lambda x: x * mx.sigmoid(x),
    "sin": mx.sin,
    "sqrt": mx.sqrt,
    "square": mx.square,
    "tan": mx.tan,
    "tanh": mx.tanh,
    "hardsigmoid": lambda x: mx.clip(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * mx.clip(x + 3, 0, 6) / 6,
    "mish": lambda x: x * mx.tanh(softplus(x)),
    "hardtanh": hardtanh,
    "leaky_relu": lambda x, slope=0.01: mx.where(x > 0, x, x * slope),
    "elu": elu,
    "selu": lambda x: elu(x, *_SELU),
    "gelu": gelu,
    "softplus": softplus,
    "clone": lambda x, **_: x,
    "contiguous": lambda x, **_: x,
    "bitwise_not": lambda x: mx.logical_not(x) if x.dtype == mx.bool_ else mx.bitwise_invert(x),
    "clamp": clamp,
    "clamp_min": clamp,
    "clamp_max": lambda x, high: mx.minimum(x, high),
    "maximum": mx.maximum,
    "minimum": mx.minimum,
    "logical_and": mx.logical_and,
    "logical_or": mx.logical_or,
    "_to_copy": lambda x, dtype=None, **_: x if dtype is None else x.astype(dtype),
    "type_as": lambda x, other: x.astype(other.dtype),
}
_BINARY = {
    "add": _with_alpha(mx.add),
    "sub": _with_alpha(mx.subtract),
    "rsub": lambda x, y, alpha=1: y - (x if alpha == 1 else x * alpha),
    "mul": mx.multiply,
    "div": divide,
    "eq": mx.equal,
    "ne": mx.not_equal,
    "lt": mx.less,
    "le": mx.less_equal,
    "gt": mx.greater,
    "ge": mx.greater_equal,
    "remainder": mx.remainder,
    "bitwise_and": mx.bitwise_and,
    "bitwise_or": mx.bitwise_or,
    "bitwise_xor": mx.bitwise_xor,
    "__and__": mx.bitwise_and,
    "__or__": mx.bitwise_or,
    "__xor__": mx.bitwise_xor,
    "masked_fill": lambda x, mask, value: mx.where(mask, value, x),
}
_POWERS = ("Tensor_Scalar", "Tensor_Tensor", "Scalar")
_CHOICES = ("self", "ScalarOther", "ScalarSelf", "Scalar")

ELEMENTWISE: dict[str, Callable] = {
    **{f"aten.{name}.default": function for name, function in _UNARY.items()},
    **{f"aten.{name}.{form}": function for name, function in _BINARY.items() for form in ("Tensor", "Scalar")},
    **{f"aten.pow.{form}": power for form in _POWERS},
    **{f"aten.where.{form}": mx.where for form in _CHOICES},
    "aten.div.Tensor_mode": divide,
    "aten.div.Scalar_mode": divide,
    "aten.true_divide.Tensor": divide,
    "aten.floor_divide.default": lambda x, y: divide(x, y, "floor"),
    "aten.clamp.Tensor": clamp,
    "aten.clamp_min.Tensor": clamp,
    "aten.clamp_max.Tensor": _UNARY["clamp_max"],
}
"""Operators that compute each element from elements at the same place, in whatever order they are stored."""

PRODUCTS: dict[str, Callable] = {
    "aten.linear.default": linear,
    "aten.matmul.default": product,
    "aten.mm.default": product,
    "aten.bmm.default": product,
    "aten.addmm.default": lambda bias, x, y: product(x, y, bias),
    "aten.baddbmm.default": lambda bias, x, y: product(x, y, bias),
    "aten.einsum.default": lambda equation, operands: mx.einsum(equation, *operands),
    "aten.embedding.default": embedding,
    "aten.scaled_dot_product_attention.default": attention,
    "aten.layer_norm.default": layer_norm,
    "aten.rms_norm.default": rms_norm,
    "aten.softmax.int": lambda x, axis, dtype=None: mx.softmax(_cast(x, dtype), axis, precise=True),
    "aten.log_softmax.int": lambda x, axis, dtype=None: _log_softmax(_cast(x, dtype), axis),
    "aten.glu.default": glu,
}


def _cast(x: Array, dtype: mx.Dtype | None) -> Array:
    return x if dtype is None else x.astype(dtype)


def _log_softmax(x: Array, axis: int) -> Array:
    return x - mx.logsumexp(x, axis, keepdims=True)


def _is_integer(x: Array | Number) -> bool:
    return mx.issubdtype(x.dtype, mx.integer) if isinstance(x, mx.array) else isinstance(x, int)
