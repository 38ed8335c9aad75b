import pytest
import torch
from torch import nn

from quant.architecture import operator_kinds
from quant.tracing import capture


class Tied(nn.Module):
    """The weight of the embedding is that of the head; there are twice as many other parameters."""

    def __init__(self):
        super().__init__()
        self.words, self.middle = nn.Embedding(6, 4), nn.Linear(4, 8)
        self.out = nn.Linear(8, 1, bias=False)

    def forward(self, ids):
        return self.out(self.middle(self.words(ids))).relu() + nn.functional.linear(self.words(ids), self.words.weight)


def test_shares_of_parameters_and_work_are_those_of_the_textbook():
    graph = capture(Tied().eval(), (torch.zeros(2, 3, dtype=torch.int64),))
    kinds = {kind.name: kind for kind in operator_kinds(graph)}
    assert {name: kind.count for name, kind in kinds.items() if name in ("linear", "relu")} == {"linear": 3, "relu": 1}
    total = 24 + 40 + 8
    assert kinds["embedding"].parameters == pytest.approx(24 / total)
    assert kinds["linear"].parameters == pytest.approx(48 / total)
    assert kinds["linear"].work == 1.0
    for share in ("parameters", "work", "time"):
        assert sum(getattr(kind, share) for kind in kinds.values()) == pytest.approx(1)


def test_what_takes_longest_comes_first():
    class Uneven(nn.Module):
        def __init__(self):
            super().__init__()
            self.large = nn.Linear(2048, 2048)

        def forward(self, x):
            return self.large(x)[:, :4].relu()

    assert operator_kinds(capture(Uneven().eval(), (torch.randn(64, 2048),)))[0].name == "linear"


def test_a_model_without_parameters_or_products_has_no_shares_of_them():
    class Nothing(nn.Module):
        def forward(self, x):
            return x.relu()

    (kind,) = operator_kinds(capture(Nothing().eval(), (torch.randn(2, 3),)))
    assert (kind.name, kind.parameters, kind.work, kind.time) == ("relu", 0, 0, 1)
