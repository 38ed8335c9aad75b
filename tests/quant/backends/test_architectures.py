"""Small nets of the usual architectures on every backend: what each is made of, held to what its tables mean."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.graph import simulate
from quant.methods import quantize
from quant.tracing import capture

BACKENDS = ("torch", "onnxruntime", "mlx", "coreml", "openvino")
WIDTH, HEADS = 32, 2


def attention(block: nn.Module, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Self-attention of [n, t, 32] by the linear layers ``block.projection`` and ``block.output``."""
    query, key, value = block.projection(hidden).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return block.output(mixed.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention and feed-forward with norms before them: [n, t, 32] -> [n, t, 32]."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.projection, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = hidden + attention(self, self.norms[0](hidden), mask)
        return hidden + self.down(F.gelu(self.up(self.norms[1](hidden))))


class VisionTransformer(nn.Module):
    """Patches of 4 x 4, a class token, learned positions and one block: images [n, 3, 12, 12] -> logits [n, 5]."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 10, WIDTH))
        self.block, self.norm, self.head = EncoderBlock(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(image.shape[0], -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.block(tokens))[:, 0])


class Audio(nn.Module):
    """Strided, gated and depthwise convolutions over a signal of any length: [n, 1, t] -> logits [n, 4]."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(1, 2 * WIDTH, 10, stride=5)
        self.stem_norm = nn.GroupNorm(4, WIDTH)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH)
        self.pointwise, self.norm = nn.Conv1d(WIDTH, WIDTH, 1), nn.BatchNorm1d(WIDTH)
        self.grouped = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, dilation=2, groups=4)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, signal: Tensor) -> Tensor:
        features = self.stem_norm(F.glu(self.stem(signal), dim=1))
        features = features + F.relu(self.norm(self.pointwise(self.depthwise(features))))
        return self.head(F.relu(self.grouped(F.max_pool1d(features, 2))).mean(-1))


class SqueezeExcite(nn.Module):
    """An inverted bottleneck whose channels are weighted by what they hold on average: [n, 3, h, w] -> [n, 5]."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.expand, self.depthwise = nn.Conv2d(16, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH)
        self.reduce, self.excite = nn.Conv2d(WIDTH, 8, 1), nn.Conv2d(8, WIDTH, 1)
        self.project, self.head = nn.Conv2d(WIDTH, 16, 1), nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        stem = F.hardswish(self.stem_norm(self.stem(image)))
        features = F.silu(self.depthwise(F.hardswish(self.expand(stem))))
        squeezed = F.relu(self.reduce(F.adaptive_avg_pool2d(features, 1)))
        features = stem + self.project(features * F.hardsigmoid(self.excite(squeezed)))
        return self.head(F.adaptive_avg_pool2d(features, 1).flatten(1))


class MaskedEncoder(nn.Module):
    """A block of the kind BERT has: ids and mask int64 [n, t] -> logits [n, 4]."""

    def __init__(self):
        super().__init__()
        self.words, self.positions = nn.Embedding(50, WIDTH), nn.Embedding(16, WIDTH)
        self.norm, self.block = nn.LayerNorm(WIDTH), EncoderBlock()
        self.pooler, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.norm(self.words(input_ids) + self.positions(places))
        hidden = self.block(hidden, attention_mask.bool()[:, None, None, :])
        return self.head(torch.tanh(self.pooler(hidden[:, 0])))


def images(count: int) -> tuple[Tensor, ...]:
    return (torch.randn(count, 3, 12, 12),)


def signals(count: int) -> tuple[Tensor, ...]:
    return (torch.randn(count, 1, 150 if count == 2 else 213),)


def texts(count: int) -> tuple[Tensor, ...]:
    length = 7 if count == 2 else 11
    mask = torch.ones(count, length, dtype=torch.int64)
    mask[0, length - 3 :] = 0
    return torch.randint(0, 50, (count, length)), mask


NETS = {
    "vision_transformer": (VisionTransformer, images, ({0: "batch"},)),
    "audio": (Audio, signals, ({0: "batch", 2: "time"},)),
    "squeeze_excite": (SqueezeExcite, images, ({0: "batch"},)),
    "masked_encoder": (MaskedEncoder, texts, ({0: "batch", 1: "time"},) * 2),
}


@pytest.fixture(scope="module", params=NETS)
def net(request):
    """A captured net, its module, and inputs of another batch and length than it was captured on."""
    kind, inputs, axes = NETS[request.param]
    torch.manual_seed(0)
    module = kind().eval()
    return capture(module, inputs(2), axes), module, inputs(3)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, net, with_template):
    """A runtime with its template of the net, made once."""
    return with_template(request.param, net[0])


@pytest.mark.parametrize(
    ("method", "bits", "family"),
    [
        ("float", "fp32", "float"),
        ("rtn", "int8", "weight_only"),
        ("rtn", "int4", "weight_only"),
        ("static", "int8", "static"),
        ("dynamic", "int8", "dynamic"),
    ],
)
def test_every_backend_agrees_with_the_tables(backend, net, tmp_path, method, bits, family):
    (where, template), (graph, module, inputs) = backend, net
    if bits not in where.constant("EXECUTES").get(family, ()):
        refuses = where.constant("REFUSES")
        pytest.skip(refuses.get(f"{family}-{bits}") or refuses[family])
    granularity = where.constant("DYNAMIC_GRANULARITY", "token")
    quantized = quantize(graph, method, bits, [inputs] if family == "static" else (), granularity)
    where.load().compile(quantized, template, tmp_path)
    (outputs,) = where.load().load(tmp_path, 1, None)(*(values.numpy() for values in inputs))
    with torch.inference_mode():
        (meant,) = simulate(quantized)(*inputs)
        expected = module(*inputs)
    # A value that lies between two codes may be rounded to either where activations are quantized.
    tolerance = 2e-2 if family in ("static", "dynamic") else 1e-5
    assert np.linalg.norm(outputs - meant.numpy()) <= tolerance * np.linalg.norm(meant)
    assert torch.linalg.norm(meant - expected) <= 0.5 * torch.linalg.norm(expected)
