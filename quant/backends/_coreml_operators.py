"""What each operator of a Core ML program computes, in torch float32: the table of the reference evaluator.

The functions take the arguments of the MIL operator of the same name, with the same defaults, as coremltools documents
them (``coremltools.converters.mil.mil.ops.defs``). Arrays are tensors, scalars are Python numbers, and what describes a
shape (``axes``, ``strides``, ``pad`` ...) is a tuple where it is constant and an integer tensor where it is computed.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATORS: dict[str, Callable] = {}

Sizes = tuple[int, ...] | Tensor

DTYPES = {
    "bool": torch.bool,
    "fp16": torch.float32,
    "fp32": torch.float32,
    "int16": torch.int16,
    "int32": torch.int32,
    "int8": torch.int8,
    "uint16": torch.int32,
    "uint8": torch.uint8,
}
_UNARY = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "identity": lambda x: x,
    "logical_not": torch.logical_not,
    "relu": F.relu,
    "relu6": F.relu6,
    "round": torch.round,
    "shape": lambda x: torch.tensor(x.shape, dtype=torch.int32),
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
_BINARY = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "sub": torch.sub,
}
_REDUCTIONS = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "reduce_log_sum_exp": torch.logsumexp,
    "reduce_max": torch.amax,
    "reduce_mean": torch.mean,
    "reduce_min": torch.amin,
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keep),
}


def operator(name: str) -> Callable[[Callable], Callable]:
    """Enter the decorated function into the table under the name of a MIL operator."""

    def enter(function: Callable) -> Callable:
        OPERATORS[name] = function
        return function

    return enter


def _reduction(function: Callable) -> Callable:
    def compute(x: Tensor, axes: Sizes | None = None, keep_dims: bool = False) -> Tensor:
        return function(x, tuple(range(x.ndim)) if axes is None else integers(axes), keep_dims)

    return compute


# Wrapped, so that the arguments have MIL's names.
OPERATORS |= {name: lambda x, function=function: function(x) for name, function in _UNARY.items()}
OPERATORS |= {name: lambda x, y, function=function: function(x, y) for name, function in _BINARY.items()}
OPERATORS |= {name: _reduction(function) for name, function in _REDUCTIONS.items()}


def integers(sizes: Sizes) -> tuple[int, ...]:
    """Return sizes as plain integers."""
    return sizes if isinstance(sizes, tuple) else tuple(sizes.reshape(-1).tolist())


@operator("real_div")
def _real_div(x: Tensor, y: Tensor) -> Tensor:
    """Of integers truncated."""
    # MIL declares the quotient of integers, as computed for flexible shapes, to be an integer.
    whole = not torch.is_floating_point(torch.as_tensor(x)) and not torch.is_floating_point(torch.as_tensor(y))
    return torch.div(x, y, rounding_mode="trunc" if whole else None)


@operator("clip")
def _clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


@operator("rsqrt")
def _rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


@operator("log")
def _log(x: Tensor, epsilon: float = 0.0) -> Tensor:
    return torch.log(x + epsilon)


@operator("inverse")
def _inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return torch.reciprocal(x + epsilon)


@operator("l2_norm")
def _l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Over the last three axes."""
    return x / (x.square().sum((-3, -2, -1), keepdim=True) + epsilon).sqrt()


@operator("linear_activation")
def _linear_activation(x: Tensor, alpha: float, beta: float = 0.0) -> Tensor:
    return alpha * x + beta


@operator("scaled_tanh")
def _scaled_tanh(x: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    return alpha * torch.tanh(beta * x)


@operator("clamped_relu")
def _clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.where(x >= 0, x, alpha * x).clamp(max=beta)


@operator("threshold")
def _threshold(x: Tensor, alpha: float) -> Tensor:
    return x.clamp(min=alpha)


@operator("softplus_parametric")
def _softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    per_channel = (1, -1, *[1] * (x.ndim - 2))
    return alpha.reshape(per_channel) * F.softplus(beta.reshape(per_channel) * x)


@operator("leaky_relu")
def _leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@operator("elu")
def _elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@operator("thresholded_relu")
def _thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x >= alpha, x, 0.0)


@operator("prelu")
def _prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return F.prelu(x, alpha)


@operator("sigmoid_hard")
def _sigmoid_hard(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


@operator("gelu")
def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


@operator("softmax")
def _softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@operator("cast")
def _cast(x: Tensor, dtype: str) -> Tensor:
    return x.to(DTYPES[dtype])


@operator("select")
def _select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


@operator("linear")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


@operator("matmul")
def _matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


@operator("einsum")
def _einsum(values: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


@operator("scaled_dot_product_attention")
def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)


@operator("layer_norm")
def _layer_norm(
    x: Tensor,
    axes: Sizes | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    axes = sorted(axis % x.ndim for axis in (range(x.ndim) if axes is None else integers(axes)))
    if axes == list(range(axes[0], x.ndim)):
        return F.layer_norm(x, x.shape[axes[0] :], gamma, beta, epsilon)
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    normed = (x - mean) * torch.rsqrt(variance + epsilon)
    normed = normed if gamma is None else normed * gamma.reshape(shape)
    return normed if beta is None else normed + beta.reshape(shape)


@operator("batch_norm")
def _batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


@operator("instance_norm")
def _instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


@operator("reshape")
def _reshape(x: Tensor, shape: Sizes) -> Tensor:
    # A zero keeps the size of the input at that place.
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(integers(shape))])


@operator("transpose")
def _transpose(x: Tensor, perm: Sizes) -> Tensor:
    return x.permute(integers(perm))


@operator("expand_dims")
def _expand_dims(x: Tensor, axes: Sizes) -> Tensor:
    axes = integers(axes)
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("squeeze")
def _squeeze(x: Tensor, axes: Sizes | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(integers(axes))


@operator("concat")
def _concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    values = [value.reshape(1) if value.ndim == 0 else value for value in values]
    if interleave:
        return torch.stack(values, axis + 1 if axis >= 0 else axis).flatten(
            axis % values[0].ndim, axis % values[0].ndim + 1
        )
    return torch.cat(values, axis)


@operator("stack")
def _stack(values: list[Tensor], axis: int) -> Tensor:
    return torch.stack(list(values), axis)


@operator("split")
def _split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Sizes | None = None) -> tuple:
    sizes = x.shape[axis] // num_splits if split_sizes is None else list(integers(split_sizes))
    return x.split(sizes, axis)


@operator("tile")
def _tile(x: Tensor, reps: Sizes) -> Tensor:
    return x.repeat(integers(reps))


@operator("fill")
def _fill(shape: Sizes, value: float = 0.0) -> Tensor:
    dtype = {bool: torch.bool, int: torch.int32}.get(type(value), torch.float32)
    return torch.full(integers(shape), value, dtype=dtype)


@operator("range_1d")
def _range(end: float, start: float, step: float) -> Tensor:
    end, start, step = (bound.item() if isinstance(bound, Tensor) else bound for bound in (end, start, step))
    return torch.arange(start, end, step, dtype=torch.int32 if isinstance(step, int) else torch.float32)


@operator("pad")
def _pad(x: Tensor, pad: Sizes, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Modes: constant, reflect and replicate; the last two of the last axes."""
    pad = integers(pad)
    padding = torch_padding(pad[::2], pad[1::2])
    if mode == "constant":
        return F.pad(x, padding, value=constant_val)
    while len(padding) > 2 * max(1, x.ndim - 2) and padding[-2:] == [0, 0]:
        padding = padding[:-2]
    return F.pad(x, padding, mode={"reflect": "reflect", "replicate": "replicate"}[mode])


def torch_padding(before: tuple[int, ...], after: tuple[int, ...]) -> list[int]:
    """Return padding in the order of ``torch.nn.functional.pad``: from the last dimension to the first."""
    return [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
