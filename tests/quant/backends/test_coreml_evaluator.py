import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("coremltools")

import coremltools as ct
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from quant.backends.coreml_evaluator import Evaluator, supported

GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.normal(size=(2, 4, 9, 7)).astype(np.float32)
ONES = np.ones_like(IMAGE)
MATRIX = GENERATOR.normal(size=(3, 5)).astype(np.float32)
POSITIVE = np.abs(MATRIX) + 0.1
KERNEL = GENERATOR.normal(size=(6, 4, 3, 3)).astype(np.float32)
TRANSPOSED = GENERATOR.normal(size=(4, 3, 3, 3)).astype(np.float32)
BIAS = GENERATOR.normal(size=(6,)).astype(np.float32)
VECTOR = GENERATOR.normal(size=(5,)).astype(np.float32)


def save(folder, program, target=ct.target.iOS18):
    model = ct.convert(
        program,
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    path = folder / "program.mlpackage"
    model.save(str(path))
    return path


def evaluator(folder, build, array, half=False):
    program = mb.program(input_specs=[mb.TensorSpec(array.shape)], opset_version=ct.target.iOS18)(lambda x: build(x))
    return Evaluator(save(folder, program), half)


def evaluate(folder, build, array, half=False):
    run = evaluator(folder, build, array, half)
    values = run({"x": array})
    return [values[name].numpy() for name in run.outputs]


def image():
    return torch.from_numpy(IMAGE)


def matrix():
    return torch.from_numpy(MATRIX)


def back_through_same_convolution(strides):
    """The gradient of the convolution, padded to give ``ceil(size / stride)``, that a transposed one undoes."""
    larger = torch.zeros(2, 3, 9 * strides[0], 7 * strides[1], requires_grad=True)
    extra = [max(3 - stride, 0) for stride in strides]
    pad = [side for n in reversed(extra) for side in (n // 2, n - n // 2)]
    F.conv2d(F.pad(larger, pad), torch.from_numpy(TRANSPOSED), stride=strides).backward(image())
    return larger.grad


OPERATORS = {
    "add": (lambda x: mb.add(x=x, y=2.0), MATRIX, MATRIX + 2),
    "real_div": (lambda x: mb.real_div(x=1.0, y=x), POSITIVE, 1 / POSITIVE),
    "pow": (lambda x: mb.pow(x=x, y=3.0), POSITIVE, POSITIVE**3),
    "maximum": (lambda x: mb.maximum(x=x, y=0.25), MATRIX, np.maximum(MATRIX, 0.25)),
    "clip": (lambda x: mb.clip(x=x, alpha=-0.5, beta=0.5), MATRIX, MATRIX.clip(-0.5, 0.5)),
    "rsqrt": (lambda x: mb.rsqrt(x=x, epsilon=0.5), POSITIVE, 1 / np.sqrt(POSITIVE + 0.5)),
    "log": (lambda x: mb.log(x=x, epsilon=0.5), POSITIVE, np.log(POSITIVE + 0.5)),
    "sigmoid_hard": (lambda x: mb.sigmoid_hard(x=x, alpha=0.3, beta=0.4), MATRIX, (0.3 * MATRIX + 0.4).clip(0, 1)),
    "gelu_tanh": (
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        MATRIX,
        F.gelu(matrix(), approximate="tanh"),
    ),
    "softmax": (lambda x: mb.softmax(x=x, axis=0), MATRIX, torch.softmax(matrix(), 0)),
    "select": (lambda x: mb.select(cond=mb.greater(x=x, y=0.0), a=x, b=-1.0), MATRIX, np.where(MATRIX > 0, MATRIX, -1)),
    "reduce_mean": (lambda x: mb.reduce_mean(x=x, axes=[-1], keep_dims=True), MATRIX, MATRIX.mean(-1, keepdims=True)),
    "reduce_sum_all": (lambda x: mb.reduce_sum(x=x), MATRIX, MATRIX.sum(dtype=np.float64)),
    "reduce_max": (lambda x: mb.reduce_max(x=x, axes=[0, 1]), MATRIX, MATRIX.max()),
    "reduce_l2_norm": (lambda x: mb.reduce_l2_norm(x=x, axes=[1]), MATRIX, np.linalg.norm(MATRIX, axis=1)),
    "matmul": (lambda x: mb.matmul(x=x, y=MATRIX, transpose_y=True), MATRIX, MATRIX @ MATRIX.T),
    "linear": (lambda x: mb.linear(x=x, weight=MATRIX, bias=MATRIX[:, 0]), MATRIX, MATRIX @ MATRIX.T + MATRIX[:, 0]),
    "layer_norm": (
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=VECTOR, epsilon=1e-3),
        MATRIX,
        F.layer_norm(matrix(), (5,), torch.from_numpy(VECTOR), eps=1e-3),
    ),
    "layer_norm_first_axis": (
        lambda x: mb.layer_norm(x=x, axes=[0], epsilon=1e-3),
        MATRIX,
        F.layer_norm(matrix().T, (3,), eps=1e-3).T,
    ),
    "conv_strided": (
        lambda x: mb.conv(x=x, weight=KERNEL, strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]),
        IMAGE,
        F.conv2d(image(), torch.from_numpy(KERNEL), stride=2, padding=1),
    ),
    "conv_one_sided_padding": (
        lambda x: mb.conv(x=x, weight=KERNEL, pad_type="custom", pad=[0, 1, 2, 0]),
        IMAGE,
        F.conv2d(F.pad(image(), (2, 0, 0, 1)), torch.from_numpy(KERNEL)),
    ),
    "conv_same": (
        lambda x: mb.conv(x=x, weight=KERNEL, strides=[2, 2], pad_type="same"),
        IMAGE,
        F.conv2d(image(), torch.from_numpy(KERNEL), stride=2, padding=1),
    ),
    "conv_depthwise": (
        lambda x: mb.conv(x=x, weight=KERNEL[:4, :1], groups=4, dilations=[2, 2]),
        IMAGE,
        F.conv2d(image(), torch.from_numpy(KERNEL[:4, :1].copy()), groups=4, dilation=2),
    ),
    "conv_transpose": (
        lambda x: mb.conv_transpose(
            x=x,
            weight=TRANSPOSED,
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            groups=2,
            bias=KERNEL[:, 0, 0, 0],
        ),
        IMAGE,
        F.conv_transpose2d(
            image(), torch.from_numpy(TRANSPOSED), torch.from_numpy(KERNEL[:, 0, 0, 0].copy()), 2, 1, groups=2
        ),
    ),
    "conv_transpose_output_shape": (
        lambda x: mb.conv_transpose(
            x=x,
            weight=TRANSPOSED,
            strides=[2, 2],
            pad_type="custom",
            pad=[0, 0, 0, 0],
            output_shape=[2, 3, 20, 16],
        ),
        IMAGE,
        F.conv_transpose2d(image(), torch.from_numpy(TRANSPOSED), stride=2, output_padding=1),
    ),
    "conv_transpose_same": (
        lambda x: mb.conv_transpose(x=x, weight=TRANSPOSED, strides=[2, 3], pad_type="same"),
        IMAGE,
        back_through_same_convolution((2, 3)),
    ),
    "avg_pool": (
        lambda x: mb.avg_pool(
            x=x,
            kernel_sizes=[3, 3],
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            exclude_padding_from_average=True,
        ),
        IMAGE,
        F.avg_pool2d(image(), 3, 2, 1, count_include_pad=False),
    ),
    "avg_pool_one_sided": (
        lambda x: mb.avg_pool(
            x=x, kernel_sizes=[3, 3], pad_type="custom", pad=[0, 2, 0, 0], exclude_padding_from_average=True
        ),
        ONES,
        np.ones((2, 4, 9, 5), np.float32),
    ),
    "max_pool": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]),
        IMAGE,
        F.max_pool2d(image(), 3, 2, 1),
    ),
    "crop": (lambda x: mb.crop(x=x, crop_height=[1, 0], crop_width=[2, 3]), IMAGE, IMAGE[:, :, 1:, 2:-3]),
    "upsample": (
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        IMAGE,
        IMAGE.repeat(2, 2).repeat(3, 3),
    ),
    "reshape_keeps_zero": (lambda x: mb.reshape(x=x, shape=[0, -1]), IMAGE, IMAGE.reshape(2, -1)),
    "reshape_computed": (
        lambda x: mb.reshape(
            x=x, shape=mb.concat(values=[mb.gather(x=mb.shape(x=x), indices=[0], axis=0), [-1]], axis=0)
        ),
        IMAGE,
        IMAGE.reshape(2, -1),
    ),
    "transpose": (lambda x: mb.transpose(x=x, perm=[0, 2, 3, 1]), IMAGE, IMAGE.transpose(0, 2, 3, 1)),
    "expand_dims": (lambda x: mb.expand_dims(x=x, axes=[0, -1]), MATRIX, MATRIX[None, :, :, None]),
    "interleave": (
        lambda x: mb.concat(values=[x, x], axis=1, interleave=True),
        MATRIX,
        np.repeat(MATRIX, 2, 1),
    ),
    "tile": (lambda x: mb.tile(x=x, reps=[2, 1]), MATRIX, np.tile(MATRIX, (2, 1))),
    "pad": (
        lambda x: mb.pad(x=x, pad=[0, 0, 1, 2], mode="constant", constant_val=7.0),
        MATRIX,
        np.pad(MATRIX, ((0, 0), (1, 2)), constant_values=7),
    ),
    "pad_reflect": (
        lambda x: mb.pad(x=x, pad=[1, 2], mode="reflect"),
        MATRIX,
        np.pad(MATRIX, ((0, 0), (1, 2)), "reflect"),
    ),
    "gather": (lambda x: mb.gather(x=x, indices=[[2, -1], [0, 1]], axis=0), MATRIX, MATRIX[[[2, -1], [0, 1]]]),
    "gather_batched": (
        lambda x: mb.gather(x=x, indices=[[1], [0], [4]], axis=1, batch_dims=1),
        MATRIX,
        MATRIX[[0, 1, 2], [1, 0, 4]][:, None],
    ),
    "gather_nd": (lambda x: mb.gather_nd(x=x, indices=[[2, 1], [0, -1]]), MATRIX, MATRIX[[2, 0], [1, -1]]),
    "gather_along_axis": (
        lambda x: mb.gather_along_axis(x=x, indices=[[1], [0], [-1]], axis=1),
        MATRIX,
        MATRIX[[0, 1, 2], [1, 0, -1]][:, None],
    ),
    "slice": (
        lambda x: mb.slice_by_index(
            x=x, begin=[1, 4], end=[0, 1], stride=[1, -2], end_mask=[True, False], squeeze_mask=[False, False]
        ),
        MATRIX,
        MATRIX[1:, 4:1:-2],
    ),
    "slice_squeezed": (
        lambda x: mb.slice_by_index(x=x, begin=[1, 0], end=[2, 3], squeeze_mask=[True, False]),
        MATRIX,
        MATRIX[1, :3],
    ),
    "slice_by_size": (lambda x: mb.slice_by_size(x=x, begin=[1, 2], size=[-1, 2]), MATRIX, MATRIX[1:, 2:4]),
    "cumsum": (
        lambda x: mb.cumsum(x=x, axis=1, exclusive=True, reverse=True),
        MATRIX,
        MATRIX[:, ::-1].cumsum(1)[:, ::-1] - MATRIX,
    ),
    "band_part": (lambda x: mb.band_part(x=x, lower=-1, upper=0), MATRIX, np.tril(MATRIX)),
    "einsum": (
        lambda x: mb.einsum(values=(x, IMAGE.transpose(0, 3, 2, 1).copy()), equation="nchw,nwhu->nchu"),
        IMAGE,
        np.einsum("nchw,nwhu->nchu", IMAGE, IMAGE.transpose(0, 3, 2, 1)),
    ),
}


INPUTS = {"image": IMAGE, "matrix": MATRIX, "positive": POSITIVE, "ones": ONES}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """One program that holds every case."""

    @mb.program(input_specs=[mb.TensorSpec(array.shape) for array in INPUTS.values()], opset_version=ct.target.iOS18)
    def program(image, matrix, positive, ones):
        given = {
            id(INPUTS[name]): variable for name, variable in zip(INPUTS, (image, matrix, positive, ones), strict=True)
        }
        cases = OPERATORS.items()
        return tuple(mb.identity(x=build(given[id(array)]), name=f"case_{name}") for name, (build, array, _) in cases)

    return save(tmp_path_factory.mktemp("operators"), program)


@pytest.fixture(scope="module")
def results(package):
    return Evaluator(package)(INPUTS)


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS only")
def test_core_ml_itself_computes_the_same(package, results):
    predicted = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit.CPU_ONLY).predict(INPUTS)
    for name, value in results.items():
        np.testing.assert_allclose(predicted[name], value.numpy(), rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_computes_what_numpy_or_torch_does(name, results):
    result, expected = results[f"case_{name}"].numpy(), np.asarray(OPERATORS[name][2], np.float32)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)


def test_split_has_several_outputs(tmp_path):
    first, second = evaluate(tmp_path, lambda x: mb.split(x=x, split_sizes=[2, 3], axis=1), MATRIX)
    np.testing.assert_array_equal(first, MATRIX[:, :2])
    np.testing.assert_array_equal(second, MATRIX[:, 2:])


def test_attention_takes_a_mask(tmp_path):
    query = GENERATOR.normal(size=(2, 3, 4, 5)).astype(np.float32)
    mask = np.where(np.tri(4), 0, -1e4).astype(np.float32)
    (result,) = evaluate(
        tmp_path, lambda x: mb.scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=mask), query
    )
    logits = query @ query.transpose(0, 1, 3, 2) / np.sqrt(5) + mask
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(result, weights / weights.sum(-1, keepdims=True) @ query, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("word", "low", "high"), [("uint8", 0, 255), ("int8", -128, 127)])
def test_quantized_activations_saturate_and_round_half_to_even(word, low, high, tmp_path):
    values = np.array([-1e6, -0.75, -0.25, 0.0, 0.25, 0.75, 1e6, 3.1], np.float32)
    zero = np.array(3).astype(word)

    def build(x):
        codes = mb.quantize(input=x, scale=np.float32(0.5), zero_point=zero, output_dtype=word)
        return mb.dequantize(input=codes, scale=np.float32(0.5), zero_point=zero)

    (result,) = evaluate(tmp_path, build, values)
    codes = np.clip(np.round(values / 0.5) + 3, low, high)
    np.testing.assert_array_equal(result, ((codes - 3) * 0.5).astype(np.float32))


def test_activations_are_quantized_along_an_axis(tmp_path):
    scale = np.array([0.1, 1.0, 10.0, 0.5, 2.0], np.float32)

    def build(x):
        return mb.dequantize(input=mb.quantize(input=x, scale=scale, axis=1, output_dtype="int8"), scale=scale, axis=1)

    (result,) = evaluate(tmp_path, build, MATRIX * 20)
    np.testing.assert_allclose(result, np.clip(np.round(MATRIX * 20 / scale), -128, 127) * scale, rtol=1e-6)


def compressed_weights():
    codes = GENERATOR.integers(0, 16, (4, 6))
    uint4, int4 = (types.nptype_from_builtin(kind) for kind in (types.uint4, types.int4))
    scale = GENERATOR.uniform(0.5, 2, (4, 3)).astype(np.float32)
    table = GENERATOR.normal(size=(2, 1, 16, 1)).astype(np.float32)
    mask = (GENERATOR.uniform(size=(4, 6)) < 0.5).astype(types.nptype_from_builtin(types.uint1))
    blocks = np.repeat(scale, 2, 1)
    dense = np.zeros((4, 6), np.float32)
    dense[mask != 0] = np.arange(mask.sum(), dtype=np.float32)
    return {
        "blocks": (
            lambda: mb.constexpr_blockwise_shift_scale(
                data=codes.astype(uint4), scale=scale, offset=np.full((4, 3), 7).astype(uint4)
            ),
            (codes - 7) * blocks,
        ),
        "signed_blocks": (
            lambda: mb.constexpr_blockwise_shift_scale(data=(codes - 8).astype(int4), scale=scale),
            (codes - 8) * blocks,
        ),
        "palette": (
            lambda: mb.constexpr_lut_to_dense(indices=codes.astype(uint4), lut=table),
            table[np.repeat([0, 1], 2)[:, None], 0, codes, 0],
        ),
        "vector_palette": (
            lambda: mb.constexpr_lut_to_dense(
                indices=codes.astype(uint4), lut=np.arange(32, dtype=np.float32).reshape(1, 1, 16, 2), vector_axis=0
            ),
            np.stack([2 * codes, 2 * codes + 1], 1).reshape(8, 6),
        ),
        "scaled_palette": (
            lambda: mb.constexpr_blockwise_shift_scale(
                data=mb.constexpr_lut_to_dense(indices=codes.astype(uint4), lut=table), scale=scale
            ),
            table[np.repeat([0, 1], 2)[:, None], 0, codes, 0] * blocks,
        ),
        "sparse": (
            lambda: mb.constexpr_sparse_to_dense(nonzero_data=np.arange(mask.sum(), dtype=np.float32), mask=mask),
            dense,
        ),
        "sparse_blocks": (
            lambda: mb.constexpr_sparse_to_dense(
                **dict(
                    zip(
                        ("mask", "nonzero_data"),
                        mb.constexpr_sparse_blockwise_shift_scale(
                            data_mask=mask, nonzero_data=codes[mask != 0].astype(np.uint8), scale=scale
                        ),
                        strict=True,
                    )
                )
            ),
            np.where(mask != 0, codes * blocks, 0),
        ),
        "widened_scale": (
            lambda: mb.constexpr_blockwise_shift_scale(
                data=codes.astype(uint4),
                scale=mb.constexpr_cast(source_val=scale.astype(np.float16), output_dtype="fp32"),
            ),
            codes * np.repeat(scale.astype(np.float16).astype(np.float32), 2, 1),
        ),
    }


COMPRESSED = compressed_weights()


@pytest.fixture(scope="module")
def decompressed(tmp_path_factory):
    @mb.program(input_specs=[mb.TensorSpec((1,))], opset_version=ct.target.iOS18)
    def program(x):
        return tuple(mb.add(x=x, y=build(), name=f"case_{name}") for name, (build, _) in COMPRESSED.items())

    return Evaluator(save(tmp_path_factory.mktemp("compressed"), program))({"x": np.zeros(1, np.float32)})


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_weight_is_decompressed(name, decompressed):
    np.testing.assert_allclose(decompressed[f"case_{name}"], COMPRESSED[name][1], rtol=1e-6, atol=1e-6)


def test_indices_packed_as_on_older_systems(tmp_path):
    codes = GENERATOR.integers(0, 4, 15)
    bits = ((codes[:, None] >> np.arange(2)) & 1).reshape(-1)
    packed = np.packbits(bits.astype(np.uint8), bitorder="little")
    table = np.array([1.0, -2.0, 3.0, 0.5], np.float32)

    @mb.program(input_specs=[mb.TensorSpec((3, 5))], opset_version=ct.target.iOS16)
    def program(x):
        return mb.add(x=x, y=mb.constexpr_lut_to_dense(indices=packed, lut=table, shape=np.uint32([3, 5])))

    run = Evaluator(save(tmp_path, program, ct.target.iOS16))
    (result,) = run({"x": np.zeros((3, 5), np.float32)}).values()
    np.testing.assert_array_equal(result, table[codes].reshape(3, 5))


def test_unknown_operator_is_refused_by_name_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match=r"does not know the Core ML operator 'non_zero' \(of output 'places'\)"):
        evaluator(tmp_path, lambda x: mb.non_zero(x=x, name="places"), MATRIX)
    assert "conv" in supported()
    assert "non_zero" not in supported()


def test_half_rounds_what_the_program_declares_as_half(tmp_path):
    def build(x):
        return mb.cast(
            x=mb.sub(x=mb.add(x=mb.cast(x=x, dtype="fp16"), y=np.float16(2048)), y=np.float16(2048)), dtype="fp32"
        )

    ones = np.ones(3, np.float32)
    (full,) = evaluate(tmp_path, build, ones)
    (half,) = evaluate(tmp_path, build, ones, half=True)
    np.testing.assert_array_equal(full, ones)
    np.testing.assert_array_equal(half, np.zeros(3))  # 2049 is no half


@pytest.fixture(scope="module")
def running_total(tmp_path_factory):
    """A program that adds its input to a state, keeps the sum, and returns twice of it."""
    specifications = [mb.TensorSpec((3,), dtype=types.fp16), mb.StateTensorSpec((3,), dtype=types.fp16)]

    @mb.program(input_specs=specifications, opset_version=ct.target.iOS18)
    def program(x, total):
        added = mb.add(x=mb.read_state(input=total), y=x)
        kept = mb.coreml_update_state(state=total, value=added)
        return mb.mul(x=kept, y=np.float16(2), name="twice")

    return save(tmp_path_factory.mktemp("state"), program)


def test_a_state_goes_from_call_to_call_and_belongs_to_its_caller(running_total):
    run = Evaluator(running_total)
    assert (run.inputs, run.states) == (("x",), ("total",))
    first, second = run.make_state(), run.make_state()
    for expected in ([2, 4, 6], [4, 8, 12]):
        assert run({"x": np.float32([1, 2, 3])}, state=first)["twice"].tolist() == expected
    assert run({"x": np.float32([1, 0, 0])}, state=second)["twice"].tolist() == [2, 0, 0]
    assert first["total"].tolist() == [2, 4, 6]
    with pytest.raises(ValueError, match=r"keeps the state 'total' from call to call: pass state=make_state\(\)"):
        run({"x": np.zeros(3, np.float32)})


def test_half_precision_rounds_inputs_and_states_too(running_total):
    x = np.float32([2049, 1e-8, 70000])  # between two halves, below and beyond them
    for half, expected in ((False, x), (True, x.astype(np.float16))):
        run = Evaluator(running_total, half)
        state = run.make_state()
        run({"x": x}, state=state)
        np.testing.assert_array_equal(state["total"], expected.astype(np.float32))


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS only")
def test_core_ml_itself_keeps_the_same_state(running_total):
    model, run = ct.models.MLModel(str(running_total)), Evaluator(running_total, half=True)
    theirs, ours = model.make_state(), run.make_state()
    for x in (np.float32([1, 2, 3]), np.float32([0.1, 0.2, 0.3])):
        found = run({"x": x}, state=ours)["twice"].numpy()
        np.testing.assert_allclose(model.predict({"x": x}, state=theirs)["twice"], found, rtol=1e-3)


def test_missing_input_is_named(tmp_path):
    run = evaluator(tmp_path, lambda x: mb.exp(x=x), MATRIX)
    with pytest.raises(ValueError, match="input 'x' is missing"):
        run({"y": MATRIX})


def test_intermediate_values_can_be_kept(tmp_path):
    run = evaluator(tmp_path, lambda x: mb.exp(x=mb.square(x=x, name="squared")), MATRIX)
    values = run({"x": MATRIX}, keep={"squared", "x"})
    np.testing.assert_array_equal(values["squared"], MATRIX**2)
    np.testing.assert_array_equal(values["x"], MATRIX)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        features = F.hardtanh(self.norm(self.first(x)), 0.0, 6.0)
        return self.head(F.silu(self.depthwise(features)).mean((2, 3)))


def test_converted_network_agrees_with_torch_at_any_batch(tmp_path):
    torch.manual_seed(0)
    module = Network().eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    exported = torch.export.export(module, (torch.randn(2, 3, 12, 12),), dynamic_shapes=({0: batch},))
    model = ct.convert(
        exported.run_decompositions({}),
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    model.save(str(tmp_path / "network.mlpackage"))
    run = Evaluator(tmp_path / "network.mlpackage")
    for count in (1, 3):
        images = torch.randn(count, 3, 12, 12)
        (result,) = run({"x": images}).values()
        with torch.no_grad():
            expected = module(images)
        assert (result - expected).norm() / expected.norm() < 1e-5
