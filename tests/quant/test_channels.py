import pytest
import torch
from torch import nn

import quant
from quant.channels import linear_groups, sample_inputs


class Reused(nn.Module):
    """One layer applied to two values, and one that reads the second of them as well."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, values):
        hidden = torch.tanh(self.first(values))
        return self.first(hidden).sum(-1) + self.second(hidden).sum(-1)


@pytest.fixture(scope="module")
def reused_graph():
    torch.manual_seed(0)
    return quant.capture(Reused().eval(), (torch.randn(2, 4, 6),))


def test_layers_of_one_value_form_a_group(transformer_graph):
    groups = linear_groups(transformer_graph, transformer_graph.quantizable())
    names = [tuple(name.removesuffix(".weight") for name in group.parameters) for group in groups]
    assert tuple(f"attention.{name}" for name in ("query", "key", "value")) in names
    assert ("down",) in names
    assert sum(map(len, names)) == 12


def test_a_weight_used_twice_binds_its_values(reused_graph):
    (group,) = linear_groups(reused_graph, reused_graph.quantizable())
    assert group.parameters == ("first.weight", "second.weight")
    assert len(group.values) == 2
    assert len(group.edges) == 3


def test_weights_that_are_not_linear_alone_have_no_group(residual_graph, tied_graph):
    found = [group.parameters for group in linear_groups(residual_graph, residual_graph.quantizable())]
    assert found == [("hidden.weight",), ("head.weight",)]
    found = [group.parameters for group in linear_groups(tied_graph, tied_graph.quantizable())]
    assert found == [("feed_forward.weight",)]
    assert linear_groups(tied_graph, []) == []


def test_samples_hold_extremes_mean_and_moments_of_all_rows(reused_graph):
    (group,) = linear_groups(reused_graph, reused_graph.quantizable())
    batches = [(torch.randn(40, 4, 6),), (torch.randn(300, 4, 6),)]
    sample = sample_inputs(reused_graph, [group], batches, moments=True)[group]
    first = nn.Linear(6, 6)
    first.load_state_dict({name: reused_graph.parameters[f"first.{name}"] for name in ("weight", "bias")})
    values = torch.cat([batch.reshape(-1, 6) for (batch,) in batches])
    rows = torch.cat([values, torch.tanh(first(values))]).detach()
    torch.testing.assert_close(sample.low, rows.amin(0))
    torch.testing.assert_close(sample.high, rows.amax(0))
    torch.testing.assert_close(sample.mean, rows.mean(0))
    torch.testing.assert_close(sample.energy, rows.square().mean(0))
    assert len(sample.rows) < len(rows) / 2
    distances = torch.cdist(sample.rows, rows, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert distances.max() < 1e-5

    scale = torch.rand(6) + 0.5
    moments = sample.scaled_moments(scale)
    torch.testing.assert_close(moments.gram[0] / moments.count, (rows * scale).T @ (rows * scale) / len(rows))


def test_the_same_data_gives_the_same_sample(reused_graph):
    groups = linear_groups(reused_graph, reused_graph.quantizable())
    batches = [(torch.randn(200, 4, 6),)]
    first, second = (sample_inputs(reused_graph, groups, batches)[groups[0]] for _ in range(2))
    assert torch.equal(first.rows, second.rows)


def test_no_data_and_bad_data_are_one_sentence(reused_graph):
    groups = linear_groups(reused_graph, reused_graph.quantizable())
    with pytest.raises(ValueError, match="needs calibration data"):
        sample_inputs(reused_graph, groups, [])
    with pytest.raises(ValueError, match=r"NaN or infinity at the input of 'first\.weight'"):
        sample_inputs(reused_graph, groups, [(torch.full((2, 4, 6), float("nan")),)])


def test_enough_rows_end_the_calibration(reused_graph):
    (group,) = linear_groups(reused_graph, reused_graph.quantizable())
    batches = [(torch.randn(40, 4, 6),) for _ in range(6)]
    some = sample_inputs(reused_graph, [group], batches, enough=500)[group]  # 320 rows in each batch, of two values
    two, all_of_them = (sample_inputs(reused_graph, [group], part)[group] for part in (batches[:2], batches))
    assert torch.equal(some.energy, two.energy)
    assert not torch.equal(some.energy, all_of_them.energy)
    assert some.moments is None
    assert len(some.rows) >= 400
