"""Small modules that the tests of the library capture."""

import pytest
import torch
from torch import nn

import quant


class Residual(nn.Module):
    """Batch norms, a residual sum between convolutions, a depthwise and a transposed convolution, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.up_norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        stem = self.stem(image)
        features = self.depthwise(torch.relu(stem + self.branch(stem)))
        features = torch.relu(self.up_norm(self.up(features))).mean((2, 3))
        return self.head(torch.relu(self.hidden(features)))


class Tied(nn.Module):
    """Token embedding tied to the output head, and a position table that is sliced."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 24)
        self.positions = nn.Parameter(torch.randn(10, 24))
        self.norm = nn.LayerNorm(24)
        self.feed_forward = nn.Linear(24, 24)
        self.head = nn.Linear(24, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        return self.head(hidden + self.feed_forward(self.norm(hidden)))


@pytest.fixture(scope="session")
def residual_module() -> nn.Module:
    torch.manual_seed(0)
    module = Residual()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -1, 1)
    return module.eval()


@pytest.fixture(scope="session")
def residual_graph(residual_module):
    return quant.capture(residual_module, (torch.randn(2, 3, 8, 8),))


@pytest.fixture(scope="session")
def tied_module() -> nn.Module:
    torch.manual_seed(1)
    return Tied().eval()


@pytest.fixture(scope="session")
def tied_graph(tied_module):
    return quant.capture(tied_module, (torch.randint(0, 40, (2, 7)),), ({0: "batch", 1: "sequence"},))


class Attention(nn.Module):
    """Self-attention with two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        def by_head(projected: torch.Tensor) -> torch.Tensor:
            return projected.view(*projected.shape[:2], 2, -1).transpose(1, 2)

        query, key, value = (by_head(project(hidden)) for project in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).reshape(hidden.shape))


class Transformer(nn.Module):
    """A layer with its norms before attention and feed-forward, then one with its norms after the residual sums."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.attention, self.late_attention = Attention(width), Attention(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.up, self.late_up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down, self.late_down = nn.Linear(2 * width, width), nn.Linear(2 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attention(self.norms[0](hidden))
        hidden = hidden + self.down(nn.functional.gelu(self.up(self.norms[1](hidden))))
        hidden = self.norms[2](hidden + self.late_attention(hidden))
        return self.norms[3](hidden + self.late_down(nn.functional.gelu(self.late_up(hidden))))


@pytest.fixture(scope="session")
def transformer_graph():
    """Two layers in which some channels are far larger than others, as in trained transformers."""
    torch.manual_seed(2)
    module = Transformer().eval()
    for norm in module.norms:
        nn.init.uniform_(norm.weight, 0.2, 1)
        nn.init.normal_(norm.bias, std=0.1)
        with torch.no_grad():
            norm.weight[5], norm.weight[40] = 12, 6
    return quant.capture(module, (torch.randn(2, 6, 64),), ({0: "batch", 1: "sequence"},))


@pytest.fixture(scope="session")
def transformer_inputs() -> torch.Tensor:
    """Inputs of the transformer graph: 32 sequences of 8."""
    return torch.randn(32, 8, 64, generator=torch.Generator().manual_seed(3))
