"""What coremltools does not convert from an exported program: Hugging Face's attention masks start from ones."""

from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _make_fill_op
from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op


def register() -> None:
    """Teach coremltools to fill new tensors with ones."""
    register_torch_op(_new_ones, torch_alias=["new_ones"], override=True)


def _new_ones(context: object, node: object) -> None:
    ones = _make_fill_op(_get_inputs(context, node)[1], 1.0, f"{node.name}_float")
    # Exported masks ask for bool; where a number is wanted, arithmetic takes the type of its other operand.
    context.add(mb.cast(x=ones, dtype="bool", name=node.name))
