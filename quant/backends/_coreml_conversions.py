"""What coremltools does not convert from an exported program: Hugging Face's attention masks start from ones."""

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
    """Teach coremltools to fill new tensors with ones."""
    register_torch_op(_new_ones, torch_alias=["new_ones"], override=True)


def _new_ones(context: object, node: object) -> None:
    like, size, *_ = _get_inputs(context, node)
    dtype = _get_kwinputs(context, node, "dtype")
    ones = _make_fill_op(size, 1.0, f"{node.name}_float")
    word = NUM_TO_DTYPE_STRING[dtype[0].val] if dtype else builtin_to_string(like.dtype)
    context.add(mb.cast(x=ones, dtype=word, name=node.name))
