"""Quantizable layers as matrices: what one multiplies with which column of its weight, and the second moments of it.

Every quantizable operator is a set of matrix products: a linear layer is one [out, in]; a convolution is one for each
of its groups, [out / groups, in / groups * kernel], over the patches its kernel sees; a transposed convolution is one
for each group, [out / groups * kernel, in / groups], whose products are added up afterwards. Methods that minimize the
error of a layer's output work on these matrices and on the second moments of what is multiplied with them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.graph import FloatGraph
from quant.nodes import Node, Operator, Parameter, data_of, transposed_groups
from quant.scheme import NumberFormat, Scheme
from quant.tensor import block_of

_MOST_ROWS = 1 << 16
_MOST_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Layer:
    """A quantizable operator with its weight, seen as ``groups`` matrices [rows, columns].

    Either weight of an LSTM is that of a linear layer: one reads its inputs, the other its hidden states. The rows of a
    weight that is ``looked_up`` are an embedding as well.
    """

    parameter: str
    node: Node
    operator: Operator
    kind: str
    shape: tuple[int, ...]
    groups: int
    transposed: bool
    looked_up: bool = False

    def matrix(self, weight: Tensor) -> Tensor:
        """Return [groups, rows, columns] of anything that has the weight's shape."""
        grouped = weight.unflatten(0, (self.groups, -1))
        if self.transposed:
            return grouped.flatten(2).transpose(1, 2)
        return grouped.flatten(2)

    def weight(self, matrix: Tensor) -> Tensor:
        """Undo :meth:`matrix`."""
        return (matrix.transpose(1, 2) if self.transposed else matrix).reshape(self.shape)

    @property
    def data(self) -> str:
        """The value that the operator reads."""
        return data_of(self.node, self.operator.data).name

    @property
    def reads_hidden(self) -> bool:
        """Whether it multiplies with the hidden states of an LSTM."""
        return self.operator.data == "h"

    @property
    def bias(self) -> str | None:
        """The parameter added to the output, if there is one."""
        bias = self.node.arguments[2] if self.kind != "embedding" and len(self.node.arguments) > 2 else None
        return bias.name if isinstance(bias, Parameter) else None

    def reads_like(self) -> tuple:
        """Return what decides how the operator reads its data: equal for layers that multiply with the same rows."""
        window = () if self.kind == "linear" or self.transposed else (self.shape[2:], *self._geometry())
        return (self.data, self.kind, self.groups, self.transposed, *window)

    def rows(self, values: Tensor) -> Tensor:
        """Return [groups, n, columns]: what the matrices are multiplied with.

        Of large images every so manieth patch is taken, so that there are about ``_MOST_ROWS`` at most.
        """
        if self.kind == "linear":
            return values.reshape(1, -1, values.shape[-1])
        values = values.unsqueeze(2) if values.ndim == 3 else values
        every = max(1, values[:, 0].numel() // _MOST_ROWS)
        parts = values.split(self._samples_at_once(values))
        patches = torch.cat([self._patches(part)[:, :, ::every] for part in parts])
        return patches.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)

    def _patches(self, values: Tensor) -> Tensor:
        """Return [n, channels * kernel, places]: what the kernel sees of values [n, channels, height, width]."""
        if self.transposed:
            return values.flatten(2)
        kernel = _planar(self.shape[2:], 1)
        stride, padding, dilation = self._geometry()
        stride, dilation = _planar(stride, 1), _planar(dilation, 1)
        return F.unfold(values, kernel, dilation, _planar(padding, 0), stride)

    def _samples_at_once(self, values: Tensor) -> int:
        kernel = torch.Size(self.shape[2:]).numel()
        return max(1, _MOST_ELEMENTS // (values[0].numel() * kernel))

    def _geometry(self) -> tuple:
        """Return stride, padding and dilation."""
        given = self.node.arguments[3:6]
        return (*given, *(1, 0, 1)[len(given) :])


def layer_of(graph: FloatGraph, parameter: str) -> Layer:
    """Return the first operator that multiplies with ``parameter``, or an embedding where none does."""
    uses = graph.quantizable()[parameter]
    edge, operator = next((use for use in uses if use[1].kind != "embedding"), uses[0])
    node, shape = graph.node(edge), tuple(graph.parameters[parameter].shape)
    kind = "linear" if operator.kind == "recurrent" else operator.kind
    transposed = transposed_groups(node)
    if transposed is not None:
        return Layer(parameter, node, operator, kind, shape, transposed, transposed=True)
    groups = 1
    if kind == "convolution":
        position = 8 if node.operator == "aten.convolution.default" else 6
        groups = node.arguments[position] if len(node.arguments) > position else 1
    looked_up = any(use.kind == "embedding" for _, use in uses)
    return Layer(parameter, node, operator, kind, shape, groups, transposed=False, looked_up=looked_up)


class Moments:
    """Second moments of what a layer multiplies with, over any number of batches.

    count  rows seen
    gram   float32 [groups, columns, columns], the sum over rows x' of the inputs of ``x'ᵀ x'``
    cross  float32 [groups, columns, columns], the sum of ``xᵀ x'``, x the rows of the float model; ``gram`` where the
           inputs are those of the float model
    """

    def __init__(self, layer: Layer) -> None:
        columns = layer.matrix(torch.empty(layer.shape, device="meta")).shape[-1]
        self.layer, self.count = layer, 0
        self.gram = self.cross = torch.zeros(layer.groups, columns, columns)

    def add(self, inputs: Tensor, original: Tensor | None = None) -> None:
        """Add what the operator reads in one batch, and what it reads in the float model where that differs.

        Raises:
            ValueError: a value is NaN or infinite; the sentence names the layer.
        """
        rows = self.layer.rows(inputs)
        if original is not None and self.cross is self.gram:
            self.cross = self.gram.clone()
        if self.cross is not self.gram:
            originals = rows if original is None else self.layer.rows(original)
            self.cross.baddbmm_(originals.mT, rows)
        self.gram.baddbmm_(rows.mT, rows)
        self.count += rows.shape[1]
        # A value that is not finite makes the square of its own column so.
        if not torch.isfinite(torch.diagonal(self.gram, dim1=-2, dim2=-1)).all():
            raise ValueError(
                f"calibration saw NaN or infinity at the input of {self.layer.parameter!r}: check the calibration data."
            )


def _planar(sizes: int | tuple[int, ...], missing: int) -> tuple[int, int]:
    """Return height and width; a sequence has height ``missing``."""
    sizes = (sizes, sizes) if isinstance(sizes, int) else tuple(sizes)
    return sizes if len(sizes) == 2 else (missing, *sizes)


def weight_formats(graph: FloatGraph, scheme: Scheme) -> dict[str, tuple[NumberFormat, tuple[int, ...]]]:
    """Return format and block of every weight the scheme quantizes; one that several operators share has the first's.

    Raises:
        ValueError: a weight holds NaN or infinity; the sentence names it.
    """
    found = {}
    for parameter, consumers in graph.quantizable().items():
        format = scheme.weight_format(consumers[0][1].kind)
        if format is None:
            continue
        weight = graph.parameters[parameter]
        if not torch.isfinite(weight).all():
            raise ValueError(f"the weight {parameter!r} holds NaN or infinity: check the model.")
        found[parameter] = format, block_of(format, tuple(weight.shape), graph.channel_block(parameter))
    return found
