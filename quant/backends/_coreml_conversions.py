"""What coremltools does not convert from an exported program.

Hugging Face's attention masks start from ones; group norms of inputs of varying length fail, because coremltools puts
their symbolic sizes into a constant.
"""

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.torch.ops import (
    NUM_TO_DTYPE_STRING,
    _get_inputs,
    _get_kwinputs,
    _make_fill_op,
)
from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op
from coremltools.converters.mil.mil.types import builtin_to_string


def register() -> None:
    """Teach coremltools to fill new tensors with ones, and to normalize groups of any length."""
    register_torch_op(_new_ones, torch_alias=["new_ones"], override=True)
    register_torch_op(_group_norm, torch_alias=["group_norm"], override=True)


def _new_ones(context: object, node: object) -> None:
    like, size, *_ = _get_inputs(context, node)
    dtype = _get_kwinputs(context, node, "dtype")
    ones = _make_fill_op(size, 1.0, f"{node.name}_float")
    word = NUM_TO_DTYPE_STRING[dtype[0].val] if dtype else builtin_to_string(like.dtype)
    context.add(mb.cast(x=ones, dtype=word, name=node.name))


def _group_norm(context: object, node: object) -> None:
    """x [n, channels, ...], its groups of channels each brought to mean zero and variance one, then scaled."""
    x, groups, weight, bias, epsilon, *_ = _get_inputs(context, node)
    shape = mb.shape(x=x)
    batch = mb.slice_by_index(x=shape, begin=[0], end=[1])
    flat = mb.reshape(x=x, shape=mb.concat(values=[batch, np.int32([groups.val, -1])], axis=0))
    centred = mb.sub(x=flat, y=mb.reduce_mean(x=flat, axes=[-1], keep_dims=True))
    variance = mb.reduce_mean(x=mb.mul(x=centred, y=centred), axes=[-1], keep_dims=True)
    normed = mb.reshape(x=mb.mul(x=centred, y=mb.rsqrt(x=variance, epsilon=epsilon.val)), shape=shape)
    per_channel = (1, -1, *[1] * (x.rank - 2))
    if weight is not None:
        normed = mb.mul(x=normed, y=mb.reshape(x=weight, shape=per_channel))
    if bias is not None:
        normed = mb.add(x=normed, y=mb.reshape(x=bias, shape=per_channel))
    context.add(mb.identity(x=normed, name=node.name))
