"""Models that an exporter of others cannot take: the operator, the line that calls it, and what was said of it."""

import pytest
import torch
from torch import nn

import quant
from quant.backends import target


class Bessel(nn.Module):
    """Calls an operator that is in no exporter's list."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return torch.special.bessel_j0(self.head(x))


@pytest.mark.parametrize(
    ("backend", "refusal"),
    [("onnxruntime", r"torch\.onnx cannot export"), ("coreml", "coremltools cannot convert")],
)
def test_the_operator_is_named_with_its_line(tmp_path, backend, refusal):
    if target(backend).missing():
        pytest.skip(target(backend).missing())
    graph = quant.capture(Bessel().eval(), (torch.randn(2, 4),))
    where = rf"{refusal} 'aten\.special_bessel_j0\.default' \(.*test_refusals\.py:\d+.*\): .*bessel"
    with pytest.raises(ValueError, match=where):
        target(backend).load().template(graph, tmp_path, "float32")
