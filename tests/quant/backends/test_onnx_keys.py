import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx_ir as ir

from quant.backends import _onnx_template
from quant.backends._onnx_session import open_session
from quant.tracing import capture

SCALE = 0.7


class Attending(nn.Module):
    """Four heads that scale by .7: float32 queries [n, s, 32], keys [n, t, 32] -> [n, s, 32]."""

    def forward(self, query, key):
        def heads(values):
            return values.unflatten(-1, (4, 8)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(heads(query), heads(key), heads(key), scale=SCALE)
        return mixed.transpose(1, 2).flatten(2)


class SharedKeys(nn.Module):
    """Two attentions with the same keys, and a product of the same factors that is none: float32 [n, h, t, 8]."""

    def forward(self, query, key):
        first = F.scaled_dot_product_attention(query, key, key)
        return F.scaled_dot_product_attention(first, key, key, scale=SCALE) + (query @ key.transpose(-1, -2)) @ key


def exported(network, query, key, folder):
    shapes = ({0: "batch", query.dim() - 2: "asked"}, {0: "batch", key.dim() - 2: "kept"})
    _onnx_template.write(capture(network.eval(), (query, key), shapes), folder)
    return ir.load(folder / "model.onnx")


def operators(model):
    return [node.op_type for node in model.graph]


def run(folder, *inputs):
    session = open_session(folder / "model.onnx")
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, (values.numpy() for values in inputs), strict=True)))[0]


def test_keys_are_transposed_once_and_only_the_query_is_scaled(tmp_path):
    torch.manual_seed(0)
    model = exported(Attending(), torch.randn(2, 3, 32), torch.randn(2, 5, 32), tmp_path)
    ranks = [len(node.attributes["perm"].as_ints()) for node in model.graph if node.op_type == "Transpose"]
    assert ranks == [4] * 5  # of query, key, value and result, and the exchange of the last two axes
    (scaling,) = [node for node in model.graph if node.op_type == "Mul"]
    assert scaling.inputs[1].const_value.numpy() == pytest.approx(SCALE)


@pytest.mark.parametrize(("batch", "asked", "kept"), [(2, 3, 5), (1, 1, 40), (3, 7, 1)])
def test_the_result_is_that_of_torch_at_other_lengths_too(tmp_path, batch, asked, kept):
    torch.manual_seed(0)
    exported(Attending(), torch.randn(2, 3, 32), torch.randn(2, 5, 32), tmp_path)
    query, key = torch.randn(batch, asked, 32), torch.randn(batch, kept, 32)
    np.testing.assert_allclose(run(tmp_path, query, key), Attending()(query, key).numpy(), rtol=1e-4, atol=1e-5)


def test_products_beside_an_attention_stay_what_they_are(tmp_path):
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8)
    exported(SharedKeys(), query, key, tmp_path)
    np.testing.assert_allclose(run(tmp_path, query, key), SharedKeys()(query, key).numpy(), rtol=1e-4, atol=1e-5)


def test_the_runtime_copies_no_keys(tmp_path):
    """ONNX Runtime takes the exchange of two axes into the product, and so reads the keys where they lie."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 6, 8)

    class Plain(nn.Module):
        def forward(self, query, key):
            return F.scaled_dot_product_attention(query, key, key)

    exported(Plain(), query, key, tmp_path)
    optimized = tmp_path / "optimized.onnx"
    open_session(tmp_path / "model.onnx", optimized_model_filepath=str(optimized))
    assert "Transpose" not in operators(ir.load(optimized))
    np.testing.assert_allclose(run(tmp_path, query, key), Plain()(query, key).numpy(), rtol=1e-4, atol=1e-5)
