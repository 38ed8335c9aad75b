"""Looking up, slicing, sorting and scattering in a Core ML program, for the reference evaluator."""

import torch
from torch import Tensor

from quant.backends._coreml_operators import Sizes, integers, operator


@operator("gather")
def _gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    if batch_dims:
        rows = zip(x.unbind(0), indices.unbind(0), strict=True)
        inner = axis % x.ndim - 1
        return torch.stack([_gather(row, places, inner, batch_dims - 1) for row, places in rows])
    axis %= x.ndim
    indices = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    picked = x.index_select(axis, indices.reshape(-1))
    return picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


@operator("gather_along_axis")
def _gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


@operator("gather_nd")
def _gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    if batch_dims:
        rows = zip(x.unbind(0), indices.unbind(0), strict=True)
        return torch.stack([_gather_nd(row, places, batch_dims - 1) for row, places in rows])
    return x[indices.long().unbind(-1)]


def _sections(
    x: Tensor, begin: Sizes, end: Sizes, stride: Sizes | None, masks: tuple[Sizes | None, Sizes | None, Sizes | None]
) -> list[range | int]:
    """Return, for each axis, the places that a slice takes, or the one place where the axis disappears."""
    begin, end = integers(begin), integers(end)
    stride = (1,) * x.ndim if stride is None else integers(stride)
    no_begin, no_end, squeezed = ((False,) * x.ndim if mask is None else integers(mask) for mask in masks)
    found: list[range | int] = []
    for axis, size in enumerate(x.shape):
        if squeezed[axis]:
            found.append(begin[axis])
        else:
            bounds = None if no_begin[axis] else begin[axis], None if no_end[axis] else end[axis]
            found.append(range(size)[slice(*bounds, stride[axis])])
    return found


@operator("slice_by_index")
def _slice(
    x: Tensor,
    begin: Sizes,
    end: Sizes,
    stride: Sizes | None = None,
    begin_mask: Sizes | None = None,
    end_mask: Sizes | None = None,
    squeeze_mask: Sizes | None = None,
) -> Tensor:
    sections = _sections(x, begin, end, stride, (begin_mask, end_mask, squeeze_mask))
    for axis in reversed(range(x.ndim)):
        places = sections[axis]
        if isinstance(places, int):
            x = x.select(axis, places)
        elif places.step < 0:
            x = x.index_select(axis, torch.tensor(places, dtype=torch.int64))
        else:
            x = x[(slice(None),) * axis + (slice(places.start, places.stop, places.step),)]
    return x


@operator("slice_update")
def _slice_update(
    x: Tensor,
    update: Tensor,
    begin: Sizes,
    end: Sizes,
    stride: Sizes | None = None,
    begin_mask: Sizes | None = None,
    end_mask: Sizes | None = None,
    squeeze_mask: Sizes | None = None,
) -> Tensor:
    sections = _sections(x, begin, end, stride, (begin_mask, end_mask, squeeze_mask))
    places = [torch.tensor([part] if isinstance(part, int) else list(part), dtype=torch.int64) for part in sections]
    changed = x.clone()
    changed[torch.meshgrid(*places, indexing="ij")] = update.reshape([len(part) for part in places])
    return changed


@operator("slice_by_size")
def _slice_by_size(x: Tensor, begin: Sizes, size: Sizes) -> Tensor:
    for axis, (start, length) in enumerate(zip(integers(begin), integers(size), strict=True)):
        x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
    return x


@operator("band_part")
def _band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    x = x if lower < 0 else x.triu(-lower)
    return x if upper < 0 else x.tril(upper)


@operator("cumsum")
def _cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    x = x.flip(axis) if reverse else x
    total = x.cumsum(axis, dtype=x.dtype)
    total = total - x if exclusive else total
    return total.flip(axis) if reverse else total


@operator("reverse")
def _reverse(x: Tensor, axes: Sizes | None = None) -> Tensor:
    return x.flip(range(x.ndim) if axes is None else integers(axes))


@operator("one_hot")
def _one_hot(
    indices: Tensor, one_hot_vector_size: int | Tensor, axis: int = -1, on_value: float = 1, off_value: float = 0
) -> Tensor:
    hot = torch.arange(int(one_hot_vector_size)) == indices.unsqueeze(-1)
    dtype = torch.int32 if isinstance(on_value, int) else torch.float32
    values = (torch.tensor(value, dtype=dtype) for value in (on_value, off_value))
    return torch.where(hot, *values).movedim(-1, axis)


@operator("reduce_argmax")
def _argmax(x: Tensor, axis: int = -1, keep_dims: bool = False) -> Tensor:
    return x.argmax(axis, keep_dims).int()


@operator("reduce_argmin")
def _argmin(x: Tensor, axis: int = -1, keep_dims: bool = False) -> Tensor:
    return x.argmin(axis, keep_dims).int()


@operator("argsort")
def _argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True).int()


@operator("topk")
def _topk(
    x: Tensor,
    k: int | Tensor = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    values, indices = x.topk(int(k), axis, largest=not ascending, sorted=True)
    return (values, indices.int()) if return_indices else (values,)


@operator("scatter_along_axis")
def _scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """Modes: add and update."""
    if mode not in ("add", "update"):
        raise ValueError("scatter_along_axis is evaluated in the modes add and update.")
    places = torch.where(indices < 0, indices + data.shape[axis], indices).long()
    return data.scatter_add(axis, places, updates) if mode == "add" else data.scatter(axis, places, updates)
