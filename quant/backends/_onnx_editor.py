"""Edits of an ONNX graph: constants, nodes and what takes the place of what."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from quant.backends._onnx_packing import pack

MICROSOFT = "com.microsoft"


class Editor:
    """Adds constants and nodes to an ONNX model, each value once per name, so that consumers share it.

    Nodes may be added in any order; :meth:`finish` sorts them.
    """

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self._model = model
        self._made: dict[str, ir.Value] = {}

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Return the initializer ``name`` that holds ``array``."""
        return self._initializer(ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name))

    def four_bit_constant(self, name: str, codes: np.ndarray) -> ir.Value:
        """Return an initializer of 4-bit integers, two to a byte; ``codes`` is int8 or uint8 of any shape."""
        dtype = ir.DataType.INT4 if codes.dtype == np.int8 else ir.DataType.UINT4
        low_bits = np.pad(codes.reshape(-1), (0, codes.size % 2)).view(np.uint8) & 0xF
        return self._initializer(ir.PackedTensor(pack(low_bits, 4), dtype, shape=codes.shape, name=name))

    def real(self, name: str, array: np.ndarray, dtype: str) -> ir.Value:
        """Return float32 values stored in ``dtype``: halves are cast, which the runtime does once, when loading."""
        stored = self.constant(name, array.astype(dtype))
        return stored if dtype == "float32" else self.cast(stored)

    def cast(self, value: ir.Value) -> ir.Value:
        """Return ``value`` as float32."""
        return self.add("Cast", [value], name=f"{value.name}/float32", to=ir.DataType.FLOAT)

    def add(
        self, operator: str, inputs: Sequence[ir.Value | None], name: str, domain: str = "", **attributes: object
    ) -> ir.Value:
        """Return the output ``name`` of a new node."""
        if name not in self._made:
            self._made[name] = self.add_many(operator, inputs, [name], domain, **attributes)[0]
        return self._made[name]

    def add_many(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        names: Sequence[str],
        domain: str = "",
        **attributes: object,
    ) -> Sequence[ir.Value]:
        """Return the outputs of a new node, called ``names``."""
        if domain:
            self.graph.opset_imports[domain] = 1
        outputs = [ir.Value(name=name) for name in names]
        node = ir.node(operator, inputs, attributes, domain=domain, outputs=outputs, name=f"{names[0]}/{operator}")
        self.graph.append(node)
        return node.outputs

    def replace_input(self, nodes: Sequence[ir.Node], old: ir.Value, new: ir.Value) -> bool:
        """Let ``nodes`` take ``new`` where they took ``old``; return whether any did."""
        places = [(node, i) for node in nodes for i, value in enumerate(node.inputs) if value is old]
        for node, position in places:
            node.replace_input_with(position, new)
        return bool(places)

    def replace_output(self, old: ir.Value, new: ir.Value) -> None:
        """Let ``new`` take the place, the name and the type of ``old`` everywhere, outputs of the graph included."""
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name, old.name = old.name, f"{old.name}/replaced"
        new.shape, new.type = old.shape, old.type

    def finish(self) -> None:
        """Sort the nodes and drop nodes and initializers that nothing uses any more."""
        self.graph.sort()
        ir.passes.common.RemoveUnusedNodesPass()(self._model)

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        if tensor.name not in self._made:
            value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape))
            value.const_value = tensor
            self.graph.register_initializer(value)
            self._made[tensor.name] = value
        return self._made[tensor.name]
