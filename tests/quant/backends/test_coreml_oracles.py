"""Every operator of the Core ML evaluator against numpy or torch, in shapes and settings that hypothesis draws."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("coremltools")

from quant.backends import coreml_evaluator
from quant.backends._coreml_operators import OPERATORS
from quant.backends._coreml_states import Cell
from quant.commands.coreml_evaluator import page

ROOT = Path(__file__).parents[3]
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)

# Operators that test_coreml_evaluator.py holds to numpy inside saved programs, and no test here draws.
IN_PROGRAMS = {
    *("constexpr_cast", "constexpr_lut_to_dense", "constexpr_sparse_to_dense", "conv", "conv_transpose"),
    *("constexpr_sparse_blockwise_shift_scale", "crop", "einsum", "scaled_dot_product_attention"),
}

UNARY = {
    **{name: getattr(np, name) for name in ("abs", "ceil", "cos", "cosh", "exp", "exp2", "floor", "sign", "sin")},
    **{name: getattr(np, name) for name in ("sinh", "square", "tan", "tanh", "logical_not")},
    **{name: getattr(np, f"arc{name[1:]}") for name in ("acos", "asin", "atan", "atanh")},
    "erf": lambda x: torch.special.erf(torch.from_numpy(x)).numpy(),
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "round": np.rint,
    "shape": lambda x: np.array(x.shape),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "sqrt": np.sqrt,
}
RANGES = {"acos": (-0.99, 0.99), "asin": (-0.99, 0.99), "atanh": (-0.99, 0.99), "sqrt": (0, 9), "tan": (-1.4, 1.4)}
BINARY = {
    "add": np.add,
    "equal": np.equal,
    "floor_div": np.floor_divide,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.mod,
    "mul": np.multiply,
    "not_equal": np.not_equal,
    "pow": np.power,
    "real_div": np.divide,
    "sub": np.subtract,
}
REDUCTIONS = {
    "reduce_l1_norm": lambda x, **how: np.abs(x).sum(**how),
    "reduce_l2_norm": lambda x, **how: np.sqrt(np.square(x).sum(**how)),
    "reduce_log_sum": lambda x, **how: np.log(x.sum(**how)),
    "reduce_log_sum_exp": lambda x, **how: np.log(np.exp(x).sum(**how)),
    "reduce_max": np.max,
    "reduce_mean": np.mean,
    "reduce_min": np.min,
    "reduce_sum": np.sum,
    "reduce_sum_square": lambda x, **how: np.square(x).sum(**how),
}
WITH_SETTINGS = {
    "clamped_relu": ({"alpha": 0.3, "beta": 1.5}, lambda x: np.minimum(np.where(x >= 0, x, 0.3 * x), 1.5)),
    "clip": ({"alpha": -0.5, "beta": 0.7}, lambda x: np.clip(x, -0.5, 0.7)),
    "elu": ({"alpha": 0.7}, lambda x: np.where(x > 0, x, 0.7 * np.expm1(x))),
    "inverse": ({"epsilon": 5.0}, lambda x: 1 / (x + 5)),
    "leaky_relu": ({"alpha": 0.2}, lambda x: np.where(x > 0, x, 0.2 * x)),
    "linear_activation": ({"alpha": 2.0, "beta": -1.0}, lambda x: 2 * x - 1),
    "log": ({"epsilon": 5.0}, lambda x: np.log(x + 5)),
    "rsqrt": ({"epsilon": 5.0}, lambda x: 1 / np.sqrt(x + 5)),
    "scaled_tanh": ({"alpha": 1.7, "beta": 0.6}, lambda x: 1.7 * np.tanh(0.6 * x)),
    "sigmoid_hard": ({"alpha": 0.3, "beta": 0.4}, lambda x: np.clip(0.3 * x + 0.4, 0, 1)),
    "threshold": ({"alpha": 0.25}, lambda x: np.maximum(x, 0.25)),
    "thresholded_relu": ({"alpha": 0.25}, lambda x: np.where(x >= 0.25, x, 0)),
}


def values(shape, seed, low=-3.0, high=3.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def computed(name, *arrays, **arguments):
    """What the operator makes of arrays, given in the order of its arguments, and of its settings."""
    names = list(inspect.signature(OPERATORS[name]).parameters)
    bound = dict(zip(names, map(torch.from_numpy, map(np.ascontiguousarray, arrays)), strict=False))
    found = OPERATORS[name](**bound, **arguments)
    return [part.numpy() for part in found] if isinstance(found, tuple) else found.numpy()


def same(found, expected, exactly=False):
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    if exactly:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", UNARY)
@settings(max_examples=5)
@given(SHAPES, SEEDS)
def test_of_one_array(name, shape, seed):
    x = values(shape, seed, *RANGES.get(name, (-3, 3)))
    x = x > 0 if name == "logical_not" else x
    same(computed(name, x), UNARY[name](x))


@pytest.mark.parametrize("name", BINARY)
@settings(max_examples=5)
@given(SHAPES, st.data(), SEEDS)
def test_of_two_arrays_that_broadcast(name, shape, data, seed):
    other = tuple(data.draw(st.sampled_from([size, 1])) for size in shape[data.draw(st.integers(0, len(shape) - 1)) :])
    low = 0.5 if name in ("pow", "real_div", "floor_div", "mod") else -3
    x, y = values(shape, seed, low), values(other, seed + 1, low)
    if name.startswith("logical"):
        x, y = x > 0, y > 0
    if "equal" in name:
        x, y = np.rint(x), np.rint(y)
    same(computed(name, x, y), BINARY[name](x, y))


@pytest.mark.parametrize("name", REDUCTIONS)
@settings(max_examples=6)
@given(SHAPES, st.data(), st.booleans(), SEEDS)
def test_over_some_axes(name, shape, data, keep, seed):
    axes = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    x = values(shape, seed, 0.5 if name == "reduce_log_sum" else -3)
    for given_axes, numpy_axes in ((axes, axes), (tuple(axis - len(shape) for axis in axes), axes), (None, None)):
        expected = REDUCTIONS[name](x, axis=numpy_axes, keepdims=keep)
        same(computed(name, x, axes=given_axes, keep_dims=keep), expected)


@pytest.mark.parametrize("name", WITH_SETTINGS)
@settings(max_examples=5)
@given(SHAPES, SEEDS)
def test_with_settings(name, shape, seed):
    arguments, oracle = WITH_SETTINGS[name]
    x = values(shape, seed)
    same(computed(name, x, **arguments), oracle(x))


@settings(max_examples=15)
@given(st.integers(2, 4).flatmap(lambda rank: st.lists(st.integers(1, 4), min_size=rank, max_size=rank)), SEEDS)
def test_per_channel_activations_and_norms(shape, seed):
    x, channels = values(shape, seed), shape[1]
    alpha, beta = values(channels, seed + 1, 0.1, 1), values(channels, seed + 2, 0.1, 1)
    along = (1, -1, *[1] * (len(shape) - 2))
    same(computed("prelu", x, alpha), np.where(x > 0, x, alpha.reshape(along) * x))
    expected = alpha.reshape(along) * np.log1p(np.exp(beta.reshape(along) * x))
    same(computed("softplus_parametric", x, alpha, beta), expected)
    mean, variance = values(channels, seed + 3), values(channels, seed + 4, 0.5, 2)
    normed = (x - mean.reshape(along)) / np.sqrt(variance.reshape(along) + 1e-3)
    scaled = normed * alpha.reshape(along) + beta.reshape(along)
    arguments = {name: torch.from_numpy(part) for name, part in (("gamma", alpha), ("beta", beta))}
    same(computed("batch_norm", x, mean, variance, epsilon=1e-3, **arguments), scaled)
    if len(shape) == 4 and shape[2] * shape[3] > 1:
        mean, variance = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
        normed = (x - mean) / np.sqrt(variance + 1e-3)
        found = computed("instance_norm", x, epsilon=1e-3, **arguments)
        same(found, normed * alpha.reshape(along) + beta.reshape(along))
        norm = np.sqrt(np.square(x).sum((1, 2, 3), keepdims=True) + 0.1)
        same(computed("l2_norm", x, epsilon=0.1), x / norm)


@settings(max_examples=15)
@given(SHAPES, st.data(), SEEDS)
def test_layer_norm_over_any_axes(shape, data, seed):
    x = values(shape, seed)
    axes = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    within = [shape[axis] for axis in axes]
    gamma, beta = values(within, seed + 1), values(within, seed + 2)
    along = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    mean, variance = (function(x, axis=tuple(axes), keepdims=True) for function in (np.mean, np.var))
    expected = (x - mean) / np.sqrt(variance + 0.1) * gamma.reshape(along) + beta.reshape(along)
    parts = {"gamma": torch.from_numpy(gamma), "beta": torch.from_numpy(beta)}
    same(computed("layer_norm", x, axes=tuple(axes), epsilon=0.1, **parts), expected)


@settings(max_examples=15)
@given(SHAPES, st.data(), SEEDS)
def test_gelu_and_softmax(shape, data, seed):
    x, axis = values(shape, seed), data.draw(st.integers(-len(shape), len(shape) - 1))
    exponent = np.exp(x - x.max(axis, keepdims=True))
    same(computed("softmax", x, axis=axis), exponent / exponent.sum(axis, keepdims=True))
    same(computed("gelu", x), 0.5 * x * (1 + UNARY["erf"](x / np.sqrt(np.float32(2)))))
    tanh = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    same(computed("gelu", x, mode="TANH_APPROXIMATION"), 0.5 * x * (1 + tanh))
    same(computed("gelu", x, mode="SIGMOID_APPROXIMATION"), x / (1 + np.exp(-1.702 * x)))


@settings(max_examples=15)
@given(st.lists(st.integers(1, 4), max_size=2), *[st.integers(1, 6)] * 3, st.booleans(), st.booleans(), SEEDS)
def test_products(batch, n, k, m, transpose_x, transpose_y, seed):
    x, y = values((*batch, n, k), seed), values((*batch, k, m), seed + 1)
    left, right = (np.swapaxes(a, -1, -2) if flip else a for a, flip in ((x, transpose_x), (y, transpose_y)))
    same(computed("matmul", left, right, transpose_x=transpose_x, transpose_y=transpose_y), x @ y)
    weight, bias = values((m, k), seed + 2), values(m, seed + 3)
    same(computed("linear", x, weight, bias), x @ weight.T + bias)
    same(computed("linear", x, weight), x @ weight.T)


@settings(max_examples=20)
@given(SHAPES, st.data(), SEEDS)
def test_shapes_are_changed_as_numpy_does(shape, data, seed):
    x, rank = values(shape, seed), len(shape)
    order = data.draw(st.permutations(range(rank)))
    axis = data.draw(st.integers(-rank, rank - 1))
    same(computed("transpose", x, perm=tuple(order)), x.transpose(order), exactly=True)
    same(computed("reshape", x, shape=(0, -1)), x.reshape(shape[0], -1), exactly=True)
    same(computed("expand_dims", x, axes=(axis,)), np.expand_dims(x, axis), exactly=True)
    same(computed("squeeze", np.expand_dims(x, axis), axes=(axis,)), x, exactly=True)
    repeats = tuple(data.draw(st.integers(1, 3)) for _ in shape)
    same(computed("tile", x, reps=repeats), np.tile(x, repeats), exactly=True)
    same(computed("reverse", x, axes=(axis,)), np.flip(x, axis), exactly=True)
    pair = [torch.from_numpy(x), torch.from_numpy(2 * x)]
    same(OPERATORS["concat"](pair, axis).numpy(), np.concatenate([x, 2 * x], axis), exactly=True)
    same(OPERATORS["stack"](pair, axis).numpy(), np.stack([x, 2 * x], axis), exactly=True)
    interleaved = np.stack([x, 2 * x], axis % rank + 1).reshape(
        [2 * n if i == axis % rank else n for i, n in enumerate(shape)]
    )
    same(OPERATORS["concat"](pair, axis, interleave=True).numpy(), interleaved, exactly=True)
    same(OPERATORS["fill"](shape, 2.5).numpy(), np.full(shape, 2.5, np.float32), exactly=True)
    condition = x > 0
    same(computed("select", condition, x, -x), np.where(condition, x, -x), exactly=True)
    cut = data.draw(st.integers(0, shape[axis]))
    for part, expected in zip(
        computed("split", x, axis=axis, split_sizes=(cut, shape[axis] - cut)), np.split(x, [cut], axis), strict=True
    ):
        same(part, expected, exactly=True)


@settings(max_examples=20)
@given(SHAPES, st.data(), SEEDS)
def test_sums_along_an_axis_and_bands(shape, data, seed):
    x, axis = values(shape, seed), data.draw(st.integers(0, len(shape) - 1))
    exclusive, backwards = data.draw(st.booleans()), data.draw(st.booleans())
    y = np.flip(x, axis) if backwards else x
    total = y.cumsum(axis) - (y if exclusive else 0)
    found = computed("cumsum", x, axis=axis, exclusive=exclusive, reverse=backwards)
    same(found, np.flip(total, axis) if backwards else total)
    if len(shape) > 1:
        lower, upper = data.draw(st.integers(-1, 3)), data.draw(st.integers(-1, 3))
        i, j = np.indices(shape[-2:])
        kept = ((lower < 0) | (i - j <= lower)) & ((upper < 0) | (j - i <= upper))
        same(computed("band_part", x, lower=lower, upper=upper), np.where(kept, x, 0), exactly=True)


@settings(max_examples=30)
@given(SHAPES, st.data(), SEEDS)
def test_slices_are_those_of_numpy_and_updating_one_changes_it_alone(shape, data, seed):
    x, rank = values(shape, seed), len(shape)
    begin = [data.draw(st.integers(-size, size - 1)) for size in shape]
    end = [data.draw(st.integers(-size, size)) for size in shape]
    stride = [data.draw(st.sampled_from([1, 2, -1])) for _ in shape]
    masks = {name: [data.draw(st.booleans()) for _ in shape] for name in ("begin_mask", "end_mask", "squeeze_mask")}
    section = tuple(
        begin[i]
        if masks["squeeze_mask"][i]
        else slice(None if masks["begin_mask"][i] else begin[i], None if masks["end_mask"][i] else end[i], stride[i])
        for i in range(rank)
    )
    where = {"begin": tuple(begin), "end": tuple(end), "stride": tuple(stride)}
    where |= {name: tuple(mask) for name, mask in masks.items()}
    same(computed("slice_by_index", x, **where), x[section], exactly=True)
    update = values(x[section].shape, seed + 1)
    expected = x.copy()
    expected[section] = update
    same(computed("slice_update", x, update, **where), expected, exactly=True)
    starts = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    sizes = tuple(data.draw(st.sampled_from([-1, size - start])) for size, start in zip(shape, starts, strict=True))
    expected = x[tuple(slice(start, None) for start in starts)]
    same(computed("slice_by_size", x, begin=starts, size=sizes), expected, exactly=True)


@settings(max_examples=20)
@given(SHAPES, st.data(), SEEDS)
def test_looking_up(shape, data, seed):
    x, rank, random = values(shape, seed), len(shape), np.random.default_rng(seed)
    axis = data.draw(st.integers(0, rank - 1))
    indices = random.integers(-shape[axis], shape[axis], (2, 3)).astype(np.int32)
    same(computed("gather", x, indices, axis=axis), np.take(x, indices, axis), exactly=True)
    along = random.integers(-shape[axis], shape[axis], shape).astype(np.int32)
    same(computed("gather_along_axis", x, along, axis=axis), np.take_along_axis(x, along, axis), exactly=True)
    depth = data.draw(st.integers(1, rank))
    places = np.stack([random.integers(-size, size, 4) for size in shape[:depth]], -1).astype(np.int32)
    same(computed("gather_nd", x, places), x[tuple(places.T)], exactly=True)
    unique = np.argsort(values(shape, seed + 1), axis).astype(np.int32)
    updates = values(shape, seed + 2)
    for mode in ("update", "add"):
        expected = x.copy()
        put = updates if mode == "update" else np.take_along_axis(x, unique, axis) + updates
        np.put_along_axis(expected, unique, put, axis)
        same(computed("scatter_along_axis", x, unique, updates, axis=axis, mode=mode), expected)


@settings(max_examples=20)
@given(SHAPES, st.data(), SEEDS)
def test_sorting(shape, data, seed):
    x, axis = values(shape, seed), data.draw(st.integers(0, len(shape) - 1))
    ascending = data.draw(st.booleans())
    order = np.argsort(x if ascending else -x, axis, kind="stable")
    same(computed("argsort", x, axis=axis, ascending=ascending), order, exactly=True)
    k = data.draw(st.integers(1, shape[axis]))
    first = np.take(order, range(k), axis)
    found, indices = computed("topk", x, k=k, axis=axis, ascending=ascending)
    same(indices, first, exactly=True)
    same(found, np.take_along_axis(x, first, axis), exactly=True)
    keep = data.draw(st.booleans())
    for name, oracle in (("reduce_argmax", np.argmax), ("reduce_argmin", np.argmin)):
        same(computed(name, x, axis=axis, keep_dims=keep), oracle(x, axis, keepdims=keep), exactly=True)
    hot = OPERATORS["one_hot"](torch.from_numpy(order), shape[axis], on_value=2.0, off_value=-1.0).numpy()
    same(hot, np.where(np.eye(shape[axis], dtype=bool)[order], 2.0, -1.0), exactly=True)


@settings(max_examples=10)
@given(st.integers(-5, 5), st.integers(1, 3), st.integers(0, 9))
def test_ranges_and_casts(start, step, count):
    end = start + step * count
    same(OPERATORS["range_1d"](end, start, step).numpy(), np.arange(start, end, step), exactly=True)
    x = np.float32([start, step + 0.75])
    for dtype in ("int32", "bool", "fp32"):
        expected = x.astype({"int32": np.int32, "bool": bool, "fp32": np.float32}[dtype])
        same(computed("cast", x, dtype=dtype), expected, exactly=True)


@settings(max_examples=10)
@given(*[st.integers(1, 2)] * 2, *[st.integers(3, 7)] * 2, st.data(), SEEDS)
def test_pools_pads_and_resizes(n, channels, height, width, data, seed):
    x = values((n, channels, height, width), seed)
    kernel, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    sides = tuple(data.draw(st.integers(0, kernel // 2)) for _ in range(4))
    padded = np.pad(x, ((0, 0), (0, 0), sides[:2], sides[2:]), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]
    how = {"kernel_sizes": (kernel,) * 2, "strides": (stride,) * 2, "pad_type": "custom", "pad": sides}
    same(computed("max_pool", x, **how), np.nanmax(windows, (-2, -1)))
    same(computed("avg_pool", x, exclude_padding_from_average=True, **how), np.nanmean(windows, (-2, -1)))
    same(computed("avg_pool", x, **how), np.nansum(windows, (-2, -1)) / kernel**2)
    for mode, word in (("reflect", "reflect"), ("replicate", "edge")):
        expected = np.pad(x, ((0, 0), (0, 0), sides[:2], sides[2:]), word)
        same(computed("pad", x, pad=sides, mode=mode), expected, exactly=True)
    scale = data.draw(st.integers(1, 3))
    found = computed("upsample_nearest_neighbor", x, scale_factor_height=scale, scale_factor_width=2)
    same(found, x.repeat(scale, 2).repeat(2, 3), exactly=True)
    found = computed("upsample_bilinear", x, scale_factor_height=2, scale_factor_width=2, align_corners=True)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        np.testing.assert_allclose(found[..., *corner], x[..., *corner], rtol=1e-5, atol=1e-6)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=3), st.data(), SEEDS)
def test_blocks_of_any_axes_share_scales_and_offsets(counts, data, seed):
    within = [data.draw(st.integers(1, 4)) for _ in counts]
    shape = [count * size for count, size in zip(counts, within, strict=True)]
    random = np.random.default_rng(seed)
    codes = random.integers(0, 16, shape).astype(np.uint8)
    offset, scale = random.integers(0, 16, counts).astype(np.uint8), values(counts, seed, 0.1, 2)
    spread = [np.kron(part, np.ones(within)) for part in (scale, offset)]
    name = "constexpr_blockwise_shift_scale"
    same(computed(name, codes, scale, offset), (codes.astype(float) - spread[1]) * spread[0])
    same(computed(name, codes, scale), codes * spread[0])


@settings(max_examples=20)
@given(SHAPES, st.data(), st.sampled_from(["int8", "uint8"]), SEEDS)
def test_activations_are_quantized_along_any_axis(shape, data, word, seed):
    x, axis = values(shape, seed, -20, 20), data.draw(st.integers(0, len(shape) - 1))
    low, high = {"int8": (-128, 127), "uint8": (0, 255)}[word]
    scale = values(shape[axis], seed + 1, 0.01, 1)
    zero = np.random.default_rng(seed).integers(low, high, shape[axis]).astype(word)
    along = [-1 if i == axis else 1 for i in range(len(shape))]
    codes = np.clip(np.rint(x / scale.reshape(along)) + zero.astype(float).reshape(along), low, high)
    how = {"axis": axis, "zero_point": torch.from_numpy(zero)}
    found = computed("quantize", x, scale, output_dtype=word, **how)
    same(found, codes, exactly=True)
    expected = (codes - zero.astype(float).reshape(along)) * scale.reshape(along)
    same(computed("dequantize", found, scale, **how), expected)
    parts = [torch.from_numpy(part) for part in (found, zero, scale)]
    same(OPERATORS["constexpr_affine_dequantize"](*parts, axis).numpy(), expected)


@settings(max_examples=10)
@given(*[st.integers(1, 5)] * 4, st.booleans(), st.booleans(), SEEDS)
def test_an_lstm_is_torchs_with_its_gates_in_core_mls_order(steps, n, width, hidden, both, whole, seed):
    torch.manual_seed(seed % 2**31)
    lstm = torch.nn.LSTM(width, hidden, bidirectional=both)
    x, states = torch.randn(steps, n, width), [torch.randn(2 if both else 1, n, hidden) for _ in range(2)]

    def moved(rows):
        """Rows of the gates input, forget, cell, output in the order input, forget, output, cell."""
        enter, keep, cell, leave = rows.chunk(4)
        return torch.cat([enter, keep, leave, cell])

    arguments = {}
    for suffix, ours in (("", ""), ("_reverse", "_back"))[: 2 if both else 1]:
        of_data, of_hidden, *biases = (
            getattr(lstm, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        arguments |= {
            f"weight_ih{ours}": moved(of_data),
            f"weight_hh{ours}": moved(of_hidden),
            f"bias{ours}": moved(sum(biases)),
        }
    flat = [torch.cat(list(state), -1) for state in states]
    direction = "bidirectional" if both else "forward"
    with torch.no_grad():
        outputs, (last_hidden, last_cell) = lstm(x, tuple(states))
        found = OPERATORS["lstm"](x, *flat, direction=direction, output_sequence=whole, **arguments)
    expected = (outputs if whole else outputs[-1:], torch.cat(list(last_hidden), -1), torch.cat(list(last_cell), -1))
    for part, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-5, atol=1e-6)


def test_a_state_is_read_as_it_was_and_keeps_what_is_written():
    kept = {"cache": torch.zeros(2)}
    cell = Cell(kept, "cache")
    before = OPERATORS["read_state"](cell)
    written = OPERATORS["coreml_update_state"](cell, torch.tensor([1.0, 2.0]))
    assert before.tolist() == [0.0, 0.0]
    assert written.tolist() == OPERATORS["read_state"](cell).tolist() == kept["cache"].tolist() == [1.0, 2.0]


def test_every_operator_is_held_to_an_oracle():
    source = Path(__file__).read_text()
    drawn = {*UNARY, *BINARY, *REDUCTIONS, *WITH_SETTINGS}
    drawn |= {name for name in OPERATORS if f'"{name}"' in source.partition("UNARY = {")[2]}
    assert set(OPERATORS) == drawn | IN_PROGRAMS


def test_the_page_on_the_evaluator_is_that_of_the_code():
    shown = (ROOT / "docs" / "coreml-evaluator.md").read_text()
    assert shown == page(), "write it again: python -m quant coreml_evaluator > docs/coreml-evaluator.md"
    assert all(f"| `{name}` |" in shown for name in coreml_evaluator.supported())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("upsample_bilinear", {"half_pixel_centers": True}), ("pad", {"pad": (1, 1), "mode": "symmetric"})],
)
def test_what_is_evaluated_in_part_refuses_the_rest(name, arguments):
    with pytest.raises((ValueError, KeyError)):
        OPERATORS[name](torch.zeros(1, 1, 4, 4), **arguments)


def test_torch_is_the_oracle_of_attention():
    query = torch.randn(2, 3, 4, 5)
    mask = torch.randn(4, 4)
    logits = query @ query.mT / 5**0.5 + mask
    expected = F.softmax(logits, -1) @ query
    found = OPERATORS["scaled_dot_product_attention"](query, query, query, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
