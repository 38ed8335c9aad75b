"""ATen operators that reshape, index, reduce or create ``mlx.core`` arrays, in ATen's own order of axes."""

import math
from collections.abc import Callable, Sequence

from quant.backends._mlx_blas import mx

Array = mx.array
Number = int | float
Axes = int | Sequence[int] | None


def flatten(x: Array, start: int = 0, end: int = -1) -> Array:
    return mx.flatten(x, start, end)


def expand(x: Array, sizes: Sequence[int], implicit: bool = False) -> Array:
    added = len(sizes) - x.ndim
    kept = [x.shape[axis - added] if size == -1 else size for axis, size in enumerate(sizes)]
    return mx.broadcast_to(x, kept)


def squeeze(x: Array, axes: Axes = None) -> Array:
    axes = range(x.ndim) if axes is None else (axes,) if isinstance(axes, int) else axes
    return mx.squeeze(x, tuple(axis for axis in axes if x.shape[axis] == 1))


def unflatten(x: Array, axis: int, sizes: Sequence[int]) -> Array:
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def slice_axis(x: Array, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    axis %= x.ndim
    # ATen writes "to the end" as the largest 64-bit integer, which MLX does not take.
    end = None if end is None else min(end, x.shape[axis])
    return x[(*(slice(None),) * axis, slice(start, end, step))]


def select(x: Array, axis: int, index: int) -> Array:
    return x[(*(slice(None),) * (axis % x.ndim), index)]


def split(x: Array, sizes: int | Sequence[int], axis: int = 0) -> list[Array]:
    """Split into parts of ``sizes`` elements each, the last one perhaps shorter, or of the sizes listed."""
    total = x.shape[axis]
    ends = range(sizes, total, sizes) if isinstance(sizes, int) else [sum(sizes[:i]) for i in range(1, len(sizes))]
    return mx.split(x, list(ends), axis) if len(ends) else [x]


def chunk(x: Array, count: int, axis: int = 0) -> list[Array]:
    return split(x, -(-x.shape[axis] // count), axis)


def unbind(x: Array, axis: int = 0) -> list[Array]:
    return [select(x, axis, index) for index in range(x.shape[axis])]


def repeat(x: Array, counts: Sequence[int]) -> Array:
    return mx.tile(x.reshape(*(1,) * (len(counts) - x.ndim), *x.shape), counts)


def flip(x: Array, axes: Sequence[int]) -> Array:
    for axis in axes:
        x = slice_axis(x, axis, None, None, -1)
    return x


def pad(x: Array, pads: Sequence[int], mode: str | Number = "constant", value: Number | None = 0) -> Array:
    """Pad by pairs of sizes, the last axis first; negative sizes crop."""
    if not isinstance(mode, str):
        mode, value = "constant", mode
    if mode != "constant":
        raise ValueError(f"the mlx backend pads with constants only, not with {mode!r}.")
    pairs = [(0, 0)] * (x.ndim - len(pads) // 2) + [tuple(pads[i : i + 2]) for i in range(len(pads) - 2, -1, -2)]
    for axis, (before, after) in enumerate(pairs):
        x = slice_axis(x, axis, max(-before, 0), x.shape[axis] - max(-after, 0))
    return mx.pad(x, [(max(before, 0), max(after, 0)) for before, after in pairs], constant_values=value or 0)


def index(x: Array, indices: Sequence[Array | None]) -> Array:
    return x[tuple(slice(None) if entry is None else entry for entry in indices)]


def vector_norm(
    x: Array, order: Number = 2, axes: Axes = None, keepdim: bool = False, dtype: mx.Dtype | None = None
) -> Array:
    x = x if dtype is None else x.astype(dtype)
    if order == 2:
        return mx.sqrt(mx.square(x).sum(_axes(axes), keepdims=keepdim))
    if abs(order) == math.inf:
        return (mx.max if order > 0 else mx.min)(mx.abs(x), _axes(axes), keepdims=keepdim)
    return mx.power(mx.power(mx.abs(x), order).sum(_axes(axes), keepdims=keepdim), 1 / order)


def variance(
    x: Array, axes: Axes = None, unbiased: bool = True, keepdim: bool = False, correction: Number | None = None
) -> Array:
    correction = int(unbiased) if correction is None else correction
    axes = _axes(axes)
    count = math.prod(x.shape if axes is None else [x.shape[axis] for axis in axes])
    deviation = mx.square(x - x.mean(axes, keepdims=True))
    return deviation.sum(axes, keepdims=keepdim) / (count - correction)


def extreme(values: Callable, indices: Callable, x: Array, axis: int, keepdim: bool = False) -> tuple[Array, Array]:
    return values(x, axis, keepdims=keepdim), position(indices, x, axis, keepdim)


def position(function: Callable, x: Array, axis: int | None = None, keepdim: bool = False) -> Array:
    """Return where an extreme is, as ATen's int64: MLX's own uint32 would wrap around in arithmetic."""
    return function(x, axis, keepdims=keepdim).astype(mx.int64)


def arange(*bounds: Number, dtype: mx.Dtype | None = None, **_: object) -> Array:
    whole = all(isinstance(bound, int) for bound in bounds)
    return mx.arange(*bounds, dtype=dtype or (mx.int64 if whole else mx.float32))


def full(sizes: Sequence[int], value: Number, dtype: mx.Dtype | None = None, **_: object) -> Array:
    return mx.full(sizes, mx.array(value, dtype))


def full_like(x: Array, value: Number, dtype: mx.Dtype | None = None, **_: object) -> Array:
    return mx.full(x.shape, mx.array(value, dtype or x.dtype))


def new_full(x: Array, sizes: Sequence[int], value: Number, dtype: mx.Dtype | None = None, **_: object) -> Array:
    return mx.full(sizes, mx.array(value, dtype or x.dtype))


def _axes(axes: Axes) -> tuple[int, ...] | None:
    """ATen means all axes by none and by an empty list."""
    return (axes,) if isinstance(axes, int) else tuple(axes) if axes else None


def _reduction(function: Callable) -> Callable:
    def reduce(x: Array, axes: Axes = None, keepdim: bool = False, dtype: mx.Dtype | None = None) -> Array:
        return function(x if dtype is None else x.astype(dtype), _axes(axes), keepdims=keepdim)

    return reduce


_SHAPES = {
    "_unsafe_view.default": mx.reshape,
    "cat.default": lambda arrays, axis=0: mx.concatenate(list(arrays), axis),
    "chunk.default": chunk,
    "constant_pad_nd.default": lambda x, pads, value=0: pad(x, pads, "constant", value),
    "expand.default": expand,
    "flatten.using_ints": flatten,
    "flip.default": flip,
    "gather.default": lambda x, axis, indices: mx.take_along_axis(x, indices, axis),
    "index.Tensor": index,
    "index_select.default": lambda x, axis, indices: mx.take(x, indices, axis),
    "movedim.int": mx.moveaxis,
    "pad.default": pad,
    "permute.default": lambda x, axes: mx.transpose(x, axes),
    "repeat.default": repeat,
    "reshape.default": mx.reshape,
    "select.int": select,
    "slice.Tensor": slice_axis,
    "split.Tensor": split,
    "split_with_sizes.default": split,
    "squeeze.default": squeeze,
    "squeeze.dim": squeeze,
    "squeeze.dims": squeeze,
    "stack.default": lambda arrays, axis=0: mx.stack(list(arrays), axis),
    "sym_size.int": lambda x, axis: x.shape[axis],
    "t.default": mx.transpose,
    "transpose.int": mx.swapaxes,
    "tril.default": mx.tril,
    "triu.default": mx.triu,
    "unbind.int": unbind,
    "unflatten.int": unflatten,
    "unsqueeze.default": mx.expand_dims,
    "view.default": mx.reshape,
}
_REDUCTIONS = {
    "all.default": _reduction(mx.all),
    "all.dim": _reduction(mx.all),
    "amax.default": _reduction(mx.max),
    "amin.default": _reduction(mx.min),
    "any.default": _reduction(mx.any),
    "any.dim": _reduction(mx.any),
    "argmax.default": lambda *arguments: position(mx.argmax, *arguments),
    "argmin.default": lambda *arguments: position(mx.argmin, *arguments),
    "cumsum.default": lambda x, axis, dtype=None: mx.cumsum(x if dtype is None else x.astype(dtype), axis),
    "linalg_vector_norm.default": vector_norm,
    "logsumexp.default": _reduction(mx.logsumexp),
    "max.default": mx.max,
    "max.dim": lambda *arguments: extreme(mx.max, mx.argmax, *arguments),
    "mean.default": lambda x, dtype=None: _REDUCTIONS["mean.dim"](x, None, False, dtype),
    "mean.dim": _reduction(mx.mean),
    "min.default": mx.min,
    "min.dim": lambda *arguments: extreme(mx.min, mx.argmin, *arguments),
    "std.correction": lambda *arguments, **keywords: mx.sqrt(variance(*arguments, **keywords)),
    "std.dim": lambda *arguments, **keywords: mx.sqrt(variance(*arguments, **keywords)),
    "sum.default": lambda x, dtype=None: _REDUCTIONS["sum.dim_IntList"](x, None, False, dtype),
    "sum.dim_IntList": _reduction(mx.sum),
    "var.correction": variance,
    "var.dim": variance,
}
_CREATION = {
    "arange.default": arange,
    "arange.start": arange,
    "arange.start_step": arange,
    "full.default": full,
    "full_like.default": full_like,
    "new_full.default": new_full,
    "new_ones.default": lambda x, sizes, **keywords: new_full(x, sizes, 1, **keywords),
    "new_zeros.default": lambda x, sizes, **keywords: new_full(x, sizes, 0, **keywords),
    "ones.default": lambda sizes, **keywords: full(sizes, 1.0, **keywords),
    "ones_like.default": lambda x, **keywords: full_like(x, 1, **keywords),
    "scalar_tensor.default": lambda value, **keywords: full((), value, **keywords),
    "zeros.default": lambda sizes, **keywords: full(sizes, 0.0, **keywords),
    "zeros_like.default": lambda x, **keywords: full_like(x, 0, **keywords),
}

ARRAYS: dict[str, Callable] = {
    f"aten.{name}": function for name, function in (_SHAPES | _REDUCTIONS | _CREATION).items()
}
