import pytest
import torch
from torch import nn

import quant
from quant.channels import linear_groups
from quant.execution import build_module
from quant.folding import choose_scale, find_fold, scale_inputs

GENERATOR = torch.Generator().manual_seed(0)


class Chain(nn.Module):
    """A norm or linear layer, something between, a linear layer."""

    def __init__(self, first: nn.Module, between, width: int = 12) -> None:
        super().__init__()
        self.first, self.between, self.last = first, between, nn.Linear(width, 4)

    def forward(self, values):
        return self.last(self.between(self.first(values), values))


class Factor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, values):
        return values * self.factor


def captured(module, shape=(2, 5, 12)):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    # Twice the precision, so that an inexact fold cannot hide behind rounding.
    return quant.capture(module.eval().double(), (torch.randn(shape).double(),), ({0: "batch"},))


def group_of(graph, parameter):
    return next(group for group in linear_groups(graph, graph.quantizable()) if parameter in group.parameters)


def random_scale(graph, group):
    channels = graph.parameters[group.parameters[0]].shape[1]
    return torch.rand(channels, generator=GENERATOR).add(0.2).double()


def assert_unchanged(graph, scales):
    """The scaled graph, with the scales that remain, computes what the graph computes."""
    scaled = scale_inputs(graph, scales)
    edges = {edge[1:]: scale.mul for edge, scale in scaled.input_scales.items()}
    found = build_module(graph.graphs["forward"], scaled.graph.parameters, edges)(*graph.examples["forward"])
    torch.testing.assert_close(found[0], graph.module()(*graph.examples["forward"])[0], rtol=1e-10, atol=1e-10)
    return scaled


FOLDS = {
    "norm": (nn.LayerNorm(12), lambda x, values: x),
    "root mean square norm": (nn.RMSNorm(12), lambda x, values: x),
    "linear without bias": (nn.Linear(12, 12, bias=False), lambda x, values: x),
    "relu": (nn.Linear(12, 12), lambda x, values: torch.relu(x)),
    "heads": (nn.Linear(12, 12), lambda x, values: x.unflatten(-1, (3, 4)).transpose(1, 2).transpose(1, 2).flatten(2)),
    "permuted": (nn.Linear(12, 12), lambda x, values: x.view(2, -1, 3, 4).permute(0, 1, 3, 2).reshape(x.shape)),
    "weighted sum": (nn.Linear(12, 12), lambda x, values: torch.softmax(torch.ones(5, 5).double(), -1) @ x),
    "gate": (nn.Linear(12, 12), lambda x, values: torch.sigmoid(values) * x),
}
REFUSALS = {
    "gelu": (nn.Linear(12, 12), lambda x, values: nn.functional.gelu(x)),
    "read twice": (nn.LayerNorm(12), lambda x, values: x + torch.relu(x)),
    "tokens and channels exchanged": (nn.LayerNorm(12), lambda x, values: x.transpose(1, 2).reshape(2, 5, 12)),
    "sum over channels": (nn.LayerNorm(12), lambda x, values: x.transpose(1, 2).matmul(x)),
    "norm without weight": (nn.LayerNorm(12, elementwise_affine=False), lambda x, values: x),
    "one factor for all channels": (Factor(), lambda x, values: x),
    "norm over two axes": (nn.LayerNorm((5, 12)), lambda x, values: x),
    "sum": (nn.LayerNorm(12), lambda x, values: x + values),
}


@pytest.mark.parametrize("name", FOLDS)
def test_an_exact_fold_leaves_no_scale_behind(name):
    graph = captured(Chain(*FOLDS[name]))
    group = group_of(graph, "last.weight")
    scaled = assert_unchanged(graph, {group: random_scale(graph, group)})
    assert not scaled.input_scales
    assert {"last.weight", "first.weight"} <= scaled.changed


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fold_keeps_its_scale_on_the_edge(name):
    first, between = REFUSALS[name]
    graph = captured(Chain(first, between))
    group = group_of(graph, "last.weight")
    assert find_fold(graph, group) is None
    scaled = assert_unchanged(graph, {group: random_scale(graph, group)})
    assert set(scaled.input_scales) == set(group.edges)
    assert scaled.changed == {"last.weight"}


def test_flattened_tokens_share_channels_and_do_not_fold():
    graph = captured(Chain(nn.LayerNorm(12), lambda x, values: x.flatten(1), width=60))
    assert find_fold(graph, group_of(graph, "last.weight")) is None


def test_a_norm_with_another_reader_does_not_fold():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.first, self.second = nn.LayerNorm(12), nn.Linear(12, 12), nn.Linear(12, 4)

        def forward(self, values):
            return self.second(self.norm(torch.tanh(self.first(self.norm(values)))))

    graph = captured(Twice())
    group = group_of(graph, "second.weight")
    assert find_fold(graph, group) is None
    assert_unchanged(graph, {group: random_scale(graph, group)})


def test_an_output_of_the_graph_does_not_fold():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.last = nn.LayerNorm(12), nn.Linear(12, 4)

        def forward(self, values):
            normed = self.norm(values)
            return self.last(normed), normed

    graph = captured(Both())
    assert find_fold(graph, group_of(graph, "last.weight")) is None


def test_a_transformer_folds_at_norms_before_layers_and_behind_attention(transformer_graph):
    groups = linear_groups(transformer_graph, transformer_graph.quantizable())
    folded = {group.parameters for group in groups if find_fold(transformer_graph, group)}
    assert folded == {
        tuple(f"attention.{name}.weight" for name in ("query", "key", "value")),
        ("attention.output.weight",),
        ("up.weight",),
        ("late_attention.output.weight",),
    }


def test_all_scales_of_a_transformer_together_change_nothing(transformer_graph):
    graph = quant.FloatGraph(
        transformer_graph.graphs,
        {name: value.double() for name, value in transformer_graph.parameters.items()},
        {"forward": tuple(value.double() for value in transformer_graph.examples["forward"])},
    )
    groups = linear_groups(graph, graph.quantizable())
    scaled = assert_unchanged(graph, {group: random_scale(graph, group) for group in groups})
    # Query, key and value hold one object, so that every backend multiplies once.
    late = next(group for group in groups if "late_attention.query.weight" in group.parameters)
    assert len({id(scaled.input_scales[edge]) for edge in late.edges}) == 1
    assert len(late.edges) == 3


def test_a_scale_that_multiplies_must_be_worth_it_and_one_that_folds_only_better():
    candidates = [torch.full((12,), 2.0), torch.full((12,), 3.0)]
    folding = captured(Chain(nn.Linear(12, 12), lambda x, values: torch.relu(x)))
    multiplying = captured(Chain(nn.Linear(12, 12), lambda x, values: torch.tanh(x)))

    def choose(graph, *errors):
        error = dict(zip((1, 2, 3), errors, strict=True))
        return choose_scale(graph, group_of(graph, "last.weight"), candidates, lambda scale: error[scale[0].item()])

    assert choose(folding, 1.0, 0.97, 0.98) is candidates[0]
    assert choose(multiplying, 1.0, 0.97, 0.98) is None
    assert choose(multiplying, 1.0, 0.97, 0.5) is candidates[1]
    assert choose(folding, 1.0, 1.0, 1.0) is None
