import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.layers import Moments, layer_of, weight_formats
from quant.scheme import parse

CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 5)),
    "strided, dilated": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(2, 1)), (2, 4, 9, 6)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), (2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(5, 5, 3, padding=1, groups=5), (2, 5, 6, 6)),
    "one-dimensional": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (2, 4, 11)),
    "padded by word": (nn.Conv2d(3, 4, (3, 5), padding="same"), (2, 3, 6, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5)),
}


def captured(module, shape):
    torch.manual_seed(0)
    return quant.capture(module.eval(), (torch.randn(shape),))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_matrix_and_weight_undo_each_other(name):
    module, shape = CONVOLUTIONS[name]
    layer = layer_of(captured(module, shape), "weight")
    weight = module.weight.detach()
    assert layer.matrix(weight).shape[0] == layer.groups
    assert torch.equal(layer.weight(layer.matrix(weight)), weight)


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name != "transposed"])
def test_a_convolution_is_its_matrices_times_its_rows(name):
    module, shape = CONVOLUTIONS[name]
    layer = layer_of(captured(module, shape), "weight")
    x = torch.randn(shape)
    with torch.no_grad():
        expected = module(x) - module.bias.reshape(-1, *[1] * (x.ndim - 2))
        products = layer.rows(x) @ layer.matrix(module.weight).mT  # [groups, n * places, channels of the group]
    found = products.unflatten(1, (len(x), -1)).permute(1, 0, 3, 2).reshape(expected.shape)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_transposed_convolution_folds_its_products():
    module, shape = CONVOLUTIONS["transposed"]
    layer = layer_of(captured(module, shape), "weight")
    x = torch.randn(shape)
    with torch.no_grad():
        expected = module(x) - module.bias.reshape(-1, 1, 1)
        products = layer.rows(x) @ layer.matrix(module.weight).mT
    by_sample = products.unflatten(1, (len(x), -1)).permute(1, 0, 3, 2).flatten(1, 2)
    found = F.fold(by_sample, expected.shape[2:], module.kernel_size, stride=module.stride)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_layers_that_read_the_same_in_the_same_way_share_their_moments():
    class Projections(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(6, 4), nn.Linear(6, 8)
            self.other = nn.Linear(8, 4)

        def forward(self, x):
            return self.query(x) + self.other(self.key(x))

    graph = captured(Projections(), (2, 6))
    query, key, other = (layer_of(graph, f"{name}.weight") for name in ("query", "key", "other"))
    assert query.reads_like() == key.reads_like() != other.reads_like()


def test_moments_add_up_over_batches_and_with_the_inputs_of_the_float_model():
    graph = captured(nn.Linear(6, 4), (2, 6))
    x, changed = torch.randn(10, 6), torch.randn(10, 6)
    moments = Moments(layer_of(graph, "weight"))
    moments.add(x[:4])
    assert moments.cross is moments.gram
    moments.add(changed[4:], x[4:])
    rows = torch.cat([x[:4], changed[4:]]).double()
    assert moments.count == 10
    torch.testing.assert_close(moments.gram[0].double(), rows.T @ rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments.cross[0].double(), x.double().T @ rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_moments_of_values_that_are_not_finite_name_the_layer(bad):
    moments = Moments(layer_of(captured(nn.Linear(3, 2), (2, 3)), "weight"))
    with pytest.raises(ValueError, match="NaN or infinity at the input of 'weight'"):
        moments.add(torch.tensor([[1.0, bad, 2.0]]))


def test_of_large_images_only_some_patches_are_taken():
    layer = layer_of(captured(nn.Conv2d(1, 2, 1), (2, 1, 8, 8)), "weight")
    assert layer.rows(torch.randn(2, 1, 512, 512)).shape[1] <= 1 << 16


def test_a_weight_that_is_not_finite_is_named():
    module = nn.Linear(4, 4)
    nn.init.constant_(module.weight, float("inf"))
    with pytest.raises(ValueError, match="'weight' holds NaN or infinity"):
        weight_formats(captured(module, (2, 4)), parse("int4"))
