import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.backends import target
from quant.backends import torch as backend
from quant.methods import quantize

pytestmark = pytest.mark.skipif(target("torch_compile").elsewhere() is not None, reason="no compiler is here")


class Net(nn.Module):
    """A convolution and two layers between which values exist as codes alone."""

    def __init__(self):
        super().__init__()
        self.image, self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 16), nn.Linear(16, 3)

    def forward(self, x):
        values = torch.relu(self.image(x)).mean(1).flatten(1)
        return self.second(torch.relu(self.first(values)))


def test_code_of_a_compiler_computes_what_kernels_do(tmp_path):
    torch.manual_seed(0)
    images = torch.randn(8, 1, 8, 8)
    graph = quant.capture(Net().eval(), (images,))
    quantized = quantize(graph, "static_plain", "int8", [(images.numpy(),)])
    backend.template(graph, tmp_path / "template")
    (tmp_path / "artefact").mkdir()
    backend.compile(quantized, tmp_path / "template", tmp_path / "artefact")
    kernels, code = (target(name).open(tmp_path / "artefact", 1) for name in ("torch", "torch_compile"))
    assert code.coverage()["operators_native"] == kernels.coverage()["operators_native"]
    (expected,), (found,) = (executable(images.numpy()) for executable in (kernels, code))
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()


def test_what_cannot_be_compiled_is_one_sentence():
    def refused(x):
        raise RuntimeError("no code of this\nand more")

    graph = quant.capture(nn.Linear(4, 2).eval(), (torch.ones(2, 4),))
    with pytest.raises(ValueError, match=r"^torch.compile cannot make code of this model: .*no code of this"):
        backend.Compiled(refused, graph.graphs["forward"])(torch.ones(2, 4))
