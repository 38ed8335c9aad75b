import weakref

import pytest
import torch

from quant.backends._torch_program import Call, assemble
from quant.nodes import Value


def test_calls_run_in_order_with_nested_arguments_and_constants():
    offset = torch.tensor([10.0])
    calls = [
        Call("sum", torch.add, (Value("x"), offset), {"alpha": 2}),
        Call("both", torch.cat, ((Value("x"), Value("sum")), -1), {}),
        Call("kept", torch.reshape, (Value("both"), (1, 2)), {}),
    ]
    both, kept, x = assemble(("x",), calls, ("both", "kept", "x"))(torch.tensor([1.0]))
    assert both.tolist() == [1.0, 21.0]
    assert kept.shape == (1, 2)
    assert x.tolist() == [1.0]


def test_names_of_values_are_never_code():
    hostile = "x): import os; os.abort() #"
    (result,) = assemble((hostile,), [Call("a b\n", torch.neg, (Value(hostile),), {})], ("a b\n",))(torch.ones(1))
    assert result.item() == -1


def test_a_value_is_dropped_after_its_last_use():
    alive = []

    def double(value):
        made = value * 2
        alive.append(weakref.ref(made))
        return made

    def count(value):
        return torch.tensor(float(sum(reference() is not None for reference in alive)))

    calls = [
        Call("first", double, (Value("x"),), {}),
        Call("unused", double, (Value("first"),), {}),
        Call("second", double, (Value("first"),), {}),
        Call("count", count, (Value("second"),), {}),
    ]
    (count_alive,) = assemble(("x",), calls, ("count",))(torch.ones(1))
    assert count_alive == 1


def test_a_value_nobody_made_is_an_error():
    with pytest.raises(KeyError, match="missing"):
        assemble(("x",), [Call("y", torch.neg, (Value("missing"),), {})], ("y",))
