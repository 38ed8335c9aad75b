"""LSTMs in a Core ML program: converting them, their gates in Core ML's order, and evaluating them.

Core ML has the gates in the order input, forget, output, cell, where torch has the last two exchanged. What is computed
with a row of a weight does not depend on the others, so that tables are reordered as the weights are.
"""

from dataclasses import replace

import torch
from torch import Tensor

from quant.backends._coreml_operators import operator
from quant.graph import FloatGraph
from quant.nodes import LSTM
from quant.tensor import QuantizedTensor

_GATES = (0, 1, 3, 2)
"""Torch's gates in Core ML's order, and the other way round."""


def register() -> None:
    """Teach coremltools to convert an exported LSTM of one layer: it knows only those of traced models."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op

    register_torch_op(_convert, torch_alias=["lstm.input"], override=True)


def weights_in_gate_order(graph: FloatGraph) -> set[str]:
    """Return the weights whose rows lie in Core ML's order in a converted program: those only LSTMs take."""
    return {
        name for name in graph.quantizable() if all(graph.node(edge).operator == LSTM for edge in graph.consumers(name))
    }


def reordered(weight: Tensor | QuantizedTensor) -> Tensor | QuantizedTensor:
    """Return a weight [4 hidden, ...] with its gates in the other order.

    Raises:
        ValueError: rows of two gates share a scale or a look-up table, and others do not.
    """
    if isinstance(weight, Tensor):
        return _exchanged(weight)
    rows = len(weight.codes)
    parts = {"codes": _exchanged(weight.codes)}
    for name in ("scale", "zero_point"):
        value = getattr(weight, name)
        if value is not None and len(value) > 1:
            _require_whole_gates(rows, weight.block[0])
            parts[name] = _exchanged(value)
    if weight.codebook is not None and weight.codebook.ndim == 2 and len(weight.codebook) > 1:
        _require_whole_gates(rows, weight.rows_per_table)
        parts["codebook"] = _exchanged(weight.codebook)
    return replace(weight, **parts)


def _exchanged(rows: Tensor) -> Tensor:
    gates = rows.chunk(4)
    return torch.cat([gates[gate] for gate in _GATES])


def _require_whole_gates(rows: int, together: int) -> None:
    if rows // 4 % together:
        raise ValueError(f"an LSTM's gates of {rows // 4} rows are not divided evenly by blocks of {together} rows.")


def _convert(context: object, node: object) -> None:
    """Add the operations of ``aten.lstm.input`` to coremltools' program."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    data, states, parameters, has_biases, layers, _, _, bidirectional, batch_first = _get_inputs(context, node)
    has_biases, layers, bidirectional, batch_first = (
        getattr(value, "val", value) for value in (has_biases, layers, bidirectional, batch_first)
    )
    each = 4 if has_biases else 2
    if layers != 1 or len(parameters) != (2 * each if bidirectional else each):
        raise NotImplementedError("Core ML has no LSTM with projected outputs.")
    steps = mb.transpose(x=data, perm=[1, 0, 2]) if batch_first else data
    arguments = {}
    for suffix, first in (("", 0), ("_back", each))[: 2 if bidirectional else 1]:
        from_data, from_hidden, *biases = (torch.from_numpy(p.val) for p in parameters[first : first + each])
        arguments[f"weight_ih{suffix}"] = _exchanged(from_data).numpy()
        arguments[f"weight_hh{suffix}"] = _exchanged(from_hidden).numpy()
        if biases:
            arguments[f"bias{suffix}"] = _exchanged(sum(biases)).numpy()
    hidden, cell = (_side_by_side(mb, state, bidirectional) for state in states)
    direction = "bidirectional" if bidirectional else "forward"
    outputs, *last = mb.lstm(
        x=steps,
        initial_h=hidden,
        initial_c=cell,
        direction=direction,
        output_sequence=True,
        name=node.name,
        **arguments,
    )
    outputs = mb.transpose(x=outputs, perm=[1, 0, 2]) if batch_first else outputs
    context.add((outputs, *(_stacked(mb, state, bidirectional) for state in last)), torch_name=node.name)


def _side_by_side(mb: object, state: object, bidirectional: bool) -> object:
    """Return a state [directions, n, hidden] as Core ML's [n, directions x hidden]."""
    if not bidirectional:
        return mb.squeeze(x=state, axes=[0])
    forward, backward = mb.split(x=state, num_splits=2, axis=0)
    return mb.squeeze(x=mb.concat(values=[forward, backward], axis=2), axes=[0])


def _stacked(mb: object, state: object, bidirectional: bool) -> object:
    if not bidirectional:
        return mb.expand_dims(x=state, axes=[0])
    return mb.stack(values=mb.split(x=state, num_splits=2, axis=1), axis=0)


@operator("lstm")
def _lstm(
    x: Tensor, initial_h: Tensor, initial_c: Tensor, weight_ih: Tensor, weight_hh: Tensor,
    bias: Tensor | None = None, weight_ih_back: Tensor | None = None, weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None, direction: str = "forward", output_sequence: bool = False,
    recurrent_activation: str = "sigmoid", cell_activation: str = "tanh", activation: str = "tanh",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Forwards or in both directions, with sigmoid gates and tanh."""
    if (recurrent_activation, cell_activation, activation) != ("sigmoid", "tanh", "tanh") or direction == "reverse":
        raise ValueError("lstm is evaluated forwards or in both directions, with sigmoid gates and tanh.")
    both = direction == "bidirectional"
    given = [(weight_ih, weight_hh, bias), (weight_ih_back, weight_hh_back, bias_back)][: 2 if both else 1]
    parameters = []
    for from_data, from_hidden, summed in given:
        parameters += [_exchanged(from_data), _exchanged(from_hidden)]
        if bias is not None:
            parameters += [_exchanged(summed), torch.zeros_like(summed)]
    states = [torch.stack(state.chunk(len(given), -1)) for state in (initial_h, initial_c)]
    outputs, *last = torch.lstm(x, states, parameters, bias is not None, 1, 0.0, False, both, False)
    outputs = outputs if output_sequence else outputs[-1:]
    return outputs, *(torch.cat(list(state), -1) for state in last)
