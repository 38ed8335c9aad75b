"""LSTMs of one layer as functions of ``mlx.core`` arrays, step by step: MLX has no kernel for them."""

from collections.abc import Callable, Sequence

from quant.backends._mlx_blas import mx
from quant.backends._mlx_operators import linear

Array = mx.array


def lstm(
    x: Array, states: Sequence[Array], parameters: Sequence[Array], has_biases: bool, layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool, on_hidden: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Return what ``aten.lstm.input`` does; ``on_hidden`` changes the hidden state that a step multiplies with.

    Raises:
        ValueError: there are several layers, or the outputs are projected.
    """
    each = len(parameters) // (2 if bidirectional else 1)
    if layers != 1 or each not in (2, 4):
        raise ValueError("the mlx backend runs LSTMs of one layer, without projections.")
    steps = mx.swapaxes(x, 0, 1) if batch_first else x
    found = []
    for direction, first in enumerate(range(0, len(parameters), each)):
        state = (states[0][direction], states[1][direction])
        found.append(_direction(steps, state, parameters[first : first + each], bool(direction), on_hidden))
    outputs, hidden, cells = zip(*found, strict=True)
    joined = mx.concatenate(outputs, -1)
    return (mx.swapaxes(joined, 0, 1) if batch_first else joined), mx.stack(hidden), mx.stack(cells)


def _direction(
    steps: Array, state: tuple[Array, Array], parameters: Sequence[Array], backwards: bool, on_hidden: Callable | None
) -> tuple[Array, Array, Array]:
    """Return outputs [t, n, hidden] and the last state of one direction over steps [t, n, in]."""
    from_data, from_hidden, *biases = parameters
    given = linear(steps, from_data, sum(biases) if biases else None)
    (hidden, cell), size = state, state[0].shape[-1]
    outputs = [hidden] * len(steps)
    for step in reversed(range(len(steps))) if backwards else range(len(steps)):
        gates = linear(hidden if on_hidden is None else on_hidden(hidden), from_hidden, given[step])
        enter_and_keep = mx.sigmoid(gates[:, : 2 * size])
        candidate, leave = mx.tanh(gates[:, 2 * size : 3 * size]), mx.sigmoid(gates[:, 3 * size :])
        cell = enter_and_keep[:, size:] * cell + enter_and_keep[:, :size] * candidate
        hidden = outputs[step] = leave * mx.tanh(cell)
    return mx.stack(outputs), hidden, cell
