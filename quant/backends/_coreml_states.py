"""What a Core ML program keeps from call to call, such as a decoder's cache, for the reference evaluator."""

from dataclasses import dataclass

from torch import Tensor

from quant.backends._coreml_operators import operator


@dataclass(frozen=True)
class Cell:
    """One state of a program: what lies under a name among all that a caller keeps."""

    kept: dict[str, Tensor]
    name: str


@operator("read_state")
def _read_state(input: Cell) -> Tensor:
    return input.kept[input.name].clone()


@operator("coreml_update_state")
def _update_state(state: Cell, value: Tensor) -> Tensor:
    """As programs are saved, ``write_state`` and then ``read_state``."""
    state.kept[state.name] = value.clone()
    return value
