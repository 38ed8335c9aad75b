"""Models that are exported: small ones that every format takes, and a small Llama."""

import pytest
import torch
from torch import nn

import quant
from fixtures.zoo._llama import Decoder


class Classifier(nn.Module):
    """A convolution, a residual sum and two linear layers whose rows are whole groups of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.hidden, self.head = nn.Linear(8 * 16, 64), nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        stem = torch.relu(self.stem(image))
        features = torch.relu(stem + self.branch(stem))
        return self.head(torch.relu(self.hidden(nn.functional.avg_pool2d(features, 2).flatten(1))))


@pytest.fixture(scope="session")
def images():
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def classifier(images):
    torch.manual_seed(0)
    return quant.capture(Classifier().eval(), (images[:2],))


@pytest.fixture(scope="session")
def tables(classifier, images):
    """``tables("rtn", "int4")``: what a method makes of the classifier."""
    made = {}

    def quantized(method, bits):
        if (method, bits) not in made:
            made[method, bits] = quant.quantize(classifier, method, bits, [(images,)])
        return made[method, bits]

    return quantized


@pytest.fixture(scope="session")
def llama_graph():
    """Two layers whose six heads of queries share three of keys and values."""
    torch.manual_seed(1)
    module = Decoder(vocabulary=96, context=24, layers=2, width=96, heads=6, shared=2, base=500.0).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 1.0)
    return quant.capture(module, (torch.randint(0, 96, (2, 11)),), ({0: "batch", 1: "sequence"},))
