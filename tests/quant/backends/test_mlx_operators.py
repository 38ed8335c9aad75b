"""Every table of operators against torch, on small captured modules and on a batch of another size."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.execution import resolve

mlx = pytest.importorskip("quant.backends.mlx")
_mlx_program = pytest.importorskip("quant.backends._mlx_program")
mx, OPERATORS = _mlx_program.mx, _mlx_program.OPERATORS
ELEMENTWISE, PRODUCTS, ARRAYS = _mlx_program.ELEMENTWISE, _mlx_program.PRODUCTS, _mlx_program.ARRAYS


class Functions(nn.Module):
    """One module of many expressions, because capturing a module costs more than running it."""

    def __init__(self, *functions, layers=()):
        super().__init__()
        self.functions, self.layers = functions, nn.ModuleList(layers)

    def forward(self, x):
        results = [function(x) for function in (*self.functions, *self.layers)]
        return tuple(y for result in results for y in (result if isinstance(result, tuple) else (result,)))


def outputs_of(module, example, folder, bits="fp32"):
    """Return (outputs of MLX, outputs of torch) on one sample more than the example has."""
    module = module.eval()
    graph = quant.capture(module, (example,))
    executable = quant.compile(quant.quantize(graph, "float", bits), "mlx", folder)
    extended = torch.cat([example, example.flip(0)[:1]])
    with torch.inference_mode():
        expected = module(extended)
    expected = expected if isinstance(expected, tuple) else (expected,)
    return executable(extended.numpy()), [value.float().numpy() for value in expected]


def assert_like_torch(module, example, folder, tolerance=1e-5):
    actual, expected = outputs_of(module, example, folder)
    assert len(actual) == len(expected)
    for position, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert ours.dtype == np.float32
        assert ours.shape == theirs.shape, f"output {position}"
        scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=1)
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale, err_msg=f"output {position}")


@pytest.fixture
def tokens():
    return torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0)) * 2


@pytest.fixture
def image():
    return torch.randn(2, 6, 9, 8, generator=torch.Generator().manual_seed(1))


X = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0)) * 2
POSITIVE, HALVES = X.square() + 0.1, torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
ROW, INTEGERS, MASK, SQUARE = torch.arange(1.0, 13.0), X.long() * 3, X > 0, X[:, :, :6]
INDICES = torch.tensor([[0, 5, 3], [3, 3, 1]])

CASES = {
    "round.default": [(X,), (HALVES,)],
    "bitwise_not.default": [(MASK,), (INTEGERS,)],
    "contiguous.default": [(X.mT,)],
    "hardtanh.default": [(X,), (X, -0.5, 2.0)],
    "leaky_relu.default": [(X,), (X, 0.2)],
    "elu.default": [(X,), (X, 0.7), (X, 1.5, 1.1, 0.9)],
    "gelu.default": [(X,), (X, {"approximate": "tanh"})],
    "softplus.default": [(X,), (X, 20.0, 10.0)],
    "clamp.default": [(X, -1, 1), (X, 0.5), (X, None, 0.5), (INTEGERS, -2, 3)],
    "clamp.Tensor": [(X, X[:, :1], X[:, 1:2]), (X, None, ROW)],
    "clamp_min.default": [(X, 0.1)],
    "clamp_min.Tensor": [(X, ROW)],
    "clamp_max.default": [(X, 0.1)],
    "clamp_max.Tensor": [(X, ROW)],
    "_to_copy.default": [(X, {"dtype": torch.int64}), (MASK, {"dtype": torch.float32}), (X,)],
    "type_as.default": [(INTEGERS, X)],
    "pow.Tensor_Scalar": [(X, 2), (X, 3), (POSITIVE, -0.5), (INTEGERS, 2)],
    "pow.Tensor_Tensor": [(POSITIVE, X)],
    "pow.Scalar": [(2, X)],
    "where.self": [(MASK, X, ROW)],
    "where.ScalarOther": [(MASK, X, 0.5)],
    "where.ScalarSelf": [(MASK, 0.5, X)],
    "where.Scalar": [(MASK, 0.5, 1.5)],
    "masked_fill.Scalar": [(X, MASK, -math.inf), (X, MASK[:, :1], 2)],
    "masked_fill.Tensor": [(X, MASK, torch.tensor(2.5))],
    "div.Tensor_mode": [(X, ROW, {"rounding_mode": mode}) for mode in ("floor", "trunc", None)]
    + [(INTEGERS, torch.tensor(2), {"rounding_mode": mode}) for mode in ("floor", "trunc")],
    "div.Scalar_mode": [(X, 0.3, {"rounding_mode": "floor"}), (INTEGERS, 2, {"rounding_mode": "trunc"})],
    "true_divide.Tensor": [(X, ROW), (INTEGERS, torch.tensor(2))],
    "floor_divide.default": [(X, ROW), (INTEGERS, torch.tensor(2))],
    "_unsafe_view.default": [(X, (2, -1, 3))],
    "cat.default": [((X, X + 1),), ((X, X[:, :2]), 1), ((X, INTEGERS), -1)],
    "chunk.default": [(X, 4, 1), (X, 3, -1)],
    "constant_pad_nd.default": [(X, (1, 2, 0, 1)), (X, (-1, 4, -2, 3), 0.5)],
    "expand.default": [(X[:, :1], (-1, 4, -1)), (ROW, (3, 12))],
    "flatten.using_ints": [(X,), (X, 1), (X, 0, 1)],
    "flip.default": [(X, (0, 2))],
    "gather.default": [(X, 2, MASK.long())],
    "index.Tensor": [(X, (None, INDICES[0])), (X, (INDICES[1] % 2, INDICES[0])), (X, (INDICES % 2,))],
    "index_select.default": [(X, 1, INDICES[0])],
    "movedim.int": [(X, 0, 2)],
    "pad.default": [(X, (1, 2, 0, 1)), (X, (-1, 4, -2, 3), "constant", 0.5)],
    "permute.default": [(X, (2, 0, 1))],
    "repeat.default": [(X, (1, 2, 3)), (ROW, (2, 2))],
    "reshape.default": [(X, (4, 36))],
    "select.int": [(X, 1, 2), (X, -1, -3)],
    "slice.Tensor": [(X, 1, 1, 5), (X, 2, None, 2**63 - 1, 3), (X, 1, -4, -1), (X, 0, 1, 1)],
    "split.Tensor": [(X, 5, -1), (X, 6, 1)],
    "split_with_sizes.default": [(X, (2, 3, 7), 2)],
    "squeeze.default": [(X[:, :1, :1],), (X,)],
    "squeeze.dim": [(X[:, :1], 1), (X, 1)],
    "squeeze.dims": [(X[:, :1], (0, 1))],
    "stack.default": [((X, X + 1), 2)],
    "sym_size.int": [(X, 1), (X, -1)],
    "t.default": [(X[0],), (ROW,)],
    "transpose.int": [(X, 1, -1)],
    "tril.default": [(SQUARE,), (SQUARE, -1)],
    "triu.default": [(X,), (SQUARE, 1)],
    "unbind.int": [(X, 1)],
    "unflatten.int": [(X, -1, (3, 4)), (X, 1, (2, -1))],
    "unsqueeze.default": [(X, 1), (X, -1)],
    "view.default": [(X, (2, 6, 3, 4))],
    "any.default": [(MASK,)],
    "all.default": [(MASK,)],
    "any.dim": [(MASK, 1), (MASK, -1, True)],
    "all.dim": [(MASK, 1)],
    "argmax.default": [(X,), (X, 1), (X, -1, True)],
    "argmin.default": [(X, 1)],
    "cumsum.default": [(X, 1), (MASK, 1, {"dtype": torch.float32})],
    "linalg_vector_norm.default": [
        (X,),
        (X, 2, (-1,), True),
        (X, 1, (0, 1)),
        (X, math.inf, (1,)),
        (X, -math.inf, (1,)),
    ],
    "logsumexp.default": [(X, (-1,)), (X, (0, 1), True)],
    "max.dim": [(X, 1), (X, -1, True)],
    "min.dim": [(X, 1)],
    "mean.default": [(X,), (MASK, {"dtype": torch.float32})],
    "sum.default": [(X,), (MASK,)],
    "std.correction": [(X, (1,), {"correction": 2, "keepdim": True})],
    "var.correction": [(X, (1, 2)), (X, None, {"correction": 0})],
    "std.dim": [(X, (1,)), (X, (-1,), False, True)],
    "var.dim": [(X, (1,)), (X, (0, -1), False, True)],
    "arange.default": [(5,), (5, {"dtype": torch.float32})],
    "arange.start": [(2, 5), (0.5, 3.0)],
    "arange.start_step": [(0, 1, 0.2), (7, 0, -2)],
    "full.default": [((2, 3), 0.5), ((2,), 1), ((2,), True), ((2,), 1, {"dtype": torch.float32})],
    "full_like.default": [(X, 2), (INTEGERS, 2, {"dtype": torch.float32})],
    "new_full.default": [(X, (2, 3), 2)],
    "new_ones.default": [(X, (2, 3))],
    "new_zeros.default": [(X, (2, 3), {"dtype": torch.int64})],
    "ones.default": [((2, 3),), ((2, 3), {"dtype": torch.bool})],
    "ones_like.default": [(INTEGERS,)],
    "scalar_tensor.default": [(1.5,)],
    "zeros.default": [((2, 3),)],
    "zeros_like.default": [(X,)],
    "linear.default": [(X, X[0]), (X, X[0], ROW[:6])],
    "matmul.default": [(X, X.mT), (X, X[0].T), (ROW, ROW)],
    "mm.default": [(X[0], X[1].T)],
    "bmm.default": [(X, X.mT)],
    "addmm.default": [(ROW[:6], X[0], X[1].T)],
    "baddbmm.default": [(X @ X.mT, X, X.mT)],
    "einsum.default": [("bij,bkj->bik", (X, X))],
    "embedding.default": [(X[0], INDICES), (X[0], INDICES, 2)],
    "layer_norm.default": [(X, (12,), ROW, ROW), (X, (6, 12)), (X, (6, 12), X[0], X[1], 0.1, False)],
    "rms_norm.default": [(X, (12,)), (X, (12,), ROW, 0.1), (X, (6, 12), X[0])],
    "softmax.int": [(X, 1), (INTEGERS, -1, torch.float32)],
    "log_softmax.int": [(X, 1)],
    "glu.default": [(X,), (X, 1)],
}
_ANY = (
    *("abs", "ceil", "cos", "erf", "exp", "expm1", "floor", "neg", "sigmoid", "sign", "sin", "square", "tan", "tanh"),
    *("relu", "relu6", "silu", "hardsigmoid", "hardswish", "mish", "selu", "clone", "logical_not", "max", "min"),
)
CASES |= {f"{name}.default": [(X,)] for name in _ANY}
CASES |= {f"{name}.default": [(POSITIVE,)] for name in ("log", "log1p", "log2", "reciprocal", "rsqrt", "sqrt")}
CASES |= {f"{name}.default": [(X / 0 - X / 0 * MASK,)] for name in ("isnan", "isinf")}
CASES |= {f"{name}.default": [(X, ROW)] for name in ("maximum", "minimum")}
CASES |= {f"{name}.default": [(MASK, X < 1)] for name in ("logical_and", "logical_or")}
CASES |= {f"{name}.default": [(X, (1,)), (X, (0, -1), True)] for name in ("amax", "amin")}
CASES |= {name: [(X, (1,)), (X, (0, 2), True), (X, None)] for name in ("mean.dim", "sum.dim_IntList")}
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "mul", "div", "remainder"):
    CASES |= {f"{_name}.Tensor": [(X, ROW), (INTEGERS, ROW.long())], f"{_name}.Scalar": [(X, 0.7), (INTEGERS, 3)]}
for _name in ("add", "sub", "rsub"):
    CASES |= {f"{_name}.Tensor": [(X, ROW), (X, ROW, {"alpha": 2})], f"{_name}.Scalar": [(X, 0.5), (INTEGERS, 2, 3)]}
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__"):
    CASES |= {f"{_name}.Tensor": [(INTEGERS, INTEGERS + 1), (MASK, X < 1)], f"{_name}.Scalar": [(INTEGERS, 5)]}

CAPTURED = {"aten.scaled_dot_product_attention.default"}
"""Tested below, on captured modules, as all operators over channels are."""


def as_mlx(argument):
    if isinstance(argument, torch.Tensor):
        return mx.array(argument.numpy())
    if isinstance(argument, tuple):
        return tuple(as_mlx(item) for item in argument)
    return {torch.float32: mx.float32, torch.int64: mx.int64, torch.bool: mx.bool_}.get(argument, argument)


def flat(result):
    return list(result) if isinstance(result, tuple | list) else [result]


@pytest.mark.parametrize("name", sorted(CASES))
def test_operator_computes_what_torch_does(name):
    for *arguments, last in CASES[name]:
        keywords = last if isinstance(last, dict) else {}
        arguments += [] if keywords else [last]
        expected = flat(resolve(f"aten.{name}")(*arguments, **keywords))
        mlx_keywords = {key: as_mlx(value) for key, value in keywords.items()}
        actual = flat(OPERATORS[f"aten.{name}"](*map(as_mlx, arguments), **mlx_keywords))
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            theirs = np.asarray(theirs)
            assert np.shape(ours) == theirs.shape
            ours = np.array(ours)
            assert ours.dtype.kind == theirs.dtype.kind
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5, err_msg=str(arguments))


def test_every_operator_has_a_case():
    assert {f"aten.{name}" for name in CASES} | CAPTURED == {*ELEMENTWISE, *PRODUCTS, *ARRAYS}


def test_layers(tokens, tmp_path):
    torch.manual_seed(0)
    functions = (
        lambda x: x @ x.mT + torch.bmm(x, x.mT) + torch.einsum("bij,bkj->bik", x, x),
        lambda x: (
            torch.baddbmm(torch.bmm(x, x.mT), x, x.mT) + torch.mm(x[0], x[1].T) + torch.addmm(x[0, 0, :6], x[0], x[1].T)
        ),
    )
    layers = (
        nn.Linear(12, 5),
        nn.Linear(12, 1, bias=False),
        nn.LayerNorm(12),
        nn.LayerNorm((6, 12)),
        nn.LayerNorm(12, elementwise_affine=False),
        nn.RMSNorm(12),
        nn.GroupNorm(3, 6),
        nn.BatchNorm1d(6),
        nn.PReLU(6),
    )
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    layers[7].running_var.uniform_(0.5, 2)
    assert_like_torch(Functions(*functions, layers=layers), tokens, tmp_path)


def test_attention(tokens, tmp_path):
    bias = torch.randn(6, 6)

    def heads(x):
        return x.view(-1, 6, 3, 4).transpose(1, 2)

    attend = F.scaled_dot_product_attention
    functions = (
        lambda x: attend(x, x, x),
        lambda x: attend(heads(x), heads(x), heads(x), scale=0.3),
        lambda x: attend(heads(x), heads(x), heads(x), is_causal=True),
        lambda x: attend(heads(x)[:, :, 4:], heads(x), heads(x), is_causal=True),
        lambda x: attend(heads(x), heads(x), heads(x), attn_mask=bias),
        lambda x: attend(x, x, x, attn_mask=(x @ x.mT)),
        lambda x: attend(heads(x), heads(x), heads(x), attn_mask=(x[:, None, :, :1] < 9).mT),
        lambda x: attend(heads(x), heads(x)[:, :1], heads(x)[:, :1], enable_gqa=True),
    )
    assert_like_torch(Functions(*functions), tokens, tmp_path)


def test_embedding_takes_any_integers(tmp_path):
    module = Functions(layers=[nn.Embedding(11, 4), nn.Embedding(11, 3, padding_idx=2)])
    assert_like_torch(module, torch.arange(10).reshape(2, 5), tmp_path)


def test_convolution(image, tmp_path):
    layers = (
        nn.Conv2d(6, 4, 3, padding=1),
        nn.Conv2d(6, 4, (3, 2), (2, 1), (0, 1), (1, 2), bias=False),
        nn.Conv2d(6, 4, 1, stride=2, padding=1),
        nn.Conv2d(6, 4, 3, padding="same"),
        nn.Conv2d(6, 4, 2, padding="same", dilation=3),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 18, (3, 2), (2, 1), 1, 2, groups=6, bias=False),
        nn.Conv2d(6, 9, 3, 2, 1, groups=3),
        nn.Conv2d(6, 4, 1, groups=2),
    )
    assert_like_torch(Functions(layers=layers), image, tmp_path)


def test_transposed_convolution(image, tmp_path):
    layers = (
        nn.ConvTranspose2d(6, 4, 3),
        nn.ConvTranspose2d(6, 4, (3, 2), (2, 3), (1, 0), (1, 2), dilation=(1, 2)),
        nn.ConvTranspose2d(6, 9, 3, 2, 1, 1, groups=3),
        nn.ConvTranspose2d(6, 6, 2, 2, groups=6, bias=False),
        nn.ConvTranspose2d(6, 4, 1, padding=1),
    )
    assert_like_torch(Functions(layers=layers), image, tmp_path)


def test_convolution_that_says_itself_whether_it_is_transposed(image, tmp_path):
    torch.manual_seed(0)
    weight, transposed, bias = torch.randn(4, 3, 3, 2), torch.randn(6, 2, 3, 3), torch.randn(4)
    functions = (
        lambda x: torch.convolution(x, weight, bias, (2, 1), (0, 1), (1, 2), False, (0, 0), 2),
        lambda x: torch.convolution(x, transposed, bias, (2, 2), (1, 1), (1, 1), True, (1, 0), 2),
    )
    assert_like_torch(Functions(*functions), image, tmp_path)


def test_convolution_along_one_axis(tokens, tmp_path):
    layers = (
        nn.Conv1d(6, 4, 3, 2, 1),
        nn.Conv1d(6, 6, 3, padding="same", groups=6),
        nn.ConvTranspose1d(6, 4, 3, 2, groups=2),
        nn.MaxPool1d(3, 2, 1),
        nn.AvgPool1d(3, 2, 1),
        nn.AdaptiveAvgPool1d(5),
        nn.Upsample(scale_factor=2),
    )
    assert_like_torch(Functions(layers=layers), tokens, tmp_path)


def test_convolution_with_a_weight_that_is_computed_or_used_twice(image, tmp_path):
    weight, transposed = torch.randn(4, 3, 3, 3), torch.randn(6, 2, 3, 3)
    shared = nn.Parameter(torch.randn(6, 6, 3, 3))
    functions = (
        lambda x: F.conv2d(x, weight * x.mean(), groups=2),
        lambda x: F.conv_transpose2d(x, transposed * x.mean(), groups=3, padding=1),
        lambda x: F.conv2d(x, shared).sum((2, 3)) + F.conv_transpose2d(x, shared).sum((2, 3)),
    )
    assert_like_torch(Functions(*functions), image, tmp_path)


def test_pooling(image, tmp_path):
    layers = (
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.MaxPool2d((2, 3), (1, 2), (0, 1), dilation=(2, 1)),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d((3, 2), (2, 3), 1, ceil_mode=True),
        nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((4, 3)),
        nn.AdaptiveAvgPool2d((None, 5)),
        nn.UpsamplingNearest2d((13, 5)),
        nn.UpsamplingNearest2d(scale_factor=1.7),
    )
    assert_like_torch(Functions(layers=layers), image, tmp_path)


def test_norms_over_channels_without_a_convolution(image, tmp_path):
    layers = (nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False), nn.GroupNorm(2, 6), nn.PReLU(6), nn.PReLU(1))
    layers[0].running_mean.normal_()
    layers[0].running_var.uniform_(0.5, 2)
    assert_like_torch(Functions(layers=layers), image, tmp_path)


def test_half_precision_stays_half_and_finite(tmp_path):
    def masked(x):
        lowest = torch.finfo(torch.float32).min
        return ((1 - (x > -9).float()) * lowest + x + torch.arange(12) / 3).softmax(-1)

    module = nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12), Functions(masked, F.gelu))
    for bits, tolerance in (("fp16", 2e-3), ("bf16", 2e-2)):
        actual, expected = outputs_of(module, torch.randn(2, 6, 12), tmp_path / bits, bits)
        for ours, theirs in zip(actual, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())
            assert np.abs(ours - theirs).max() > 0


def test_an_unknown_operator_is_refused_by_name(tmp_path):
    graph = quant.capture(Functions(lambda x: torch.erfinv(x)).eval(), (torch.rand(2, 3),))
    with pytest.raises(ValueError, match=r"'aten.erfinv.default' \(node 'erfinv_0', .*test_mlx_operators.py:\d+\)"):
        mlx.template(graph, tmp_path, "float32")


def test_an_unknown_use_of_an_operator_is_refused_by_node(tmp_path):
    graph = quant.capture(Functions(lambda x: F.pad(x, (1, 1), mode="reflect")).eval(), (torch.rand(2, 3, 4),))
    with pytest.raises(ValueError, match=r"'pad_0'.*'reflect'"):
        mlx.template(graph, tmp_path, "float32")
    assert not list(tmp_path.iterdir())
