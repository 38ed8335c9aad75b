"""A lowered graph as code of torch.compile, where Inductor fuses what eager execution writes and reads again."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from quant.nodes import Graph


class Compiled:
    """A function of tensors that is compiled when it is first called, for sizes that vary as those of ``graph`` do.

    A size of one is compiled in: calls with another batch then compile once more. The first call takes nothing from
    Inductor's own cache on disk, so that it always takes what compiling takes.
    """

    def __init__(self, function: Callable[..., tuple], graph: Graph) -> None:
        self._axes = graph.dynamic_axes
        self._function, self._called = torch.compile(function), False

    def __call__(self, *inputs: Tensor) -> tuple:
        """Call the function.

        Raises:
            ValueError: it cannot be compiled.
        """
        for value, axes in zip(inputs, self._axes, strict=True):
            for axis in axes:
                if value.shape[axis] > 1:
                    torch._dynamo.maybe_mark_dynamic(value, axis)
        if self._called:
            return self._function(*inputs)
        try:
            with torch.compiler.config.patch(force_disable_caches=True), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "dynamo_pgo force disabled")  # it is one of these caches
                outputs = self._function(*inputs)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"torch.compile cannot make code of this model: {reason}") from error
        self._called = True
        return outputs
