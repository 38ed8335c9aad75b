"""Which kernels are called, and where values stay codes."""

import functools
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.backends import _torch_kernels as kernels
from quant.backends._torch_lowering import lower
from quant.backends._torch_program import assemble
from quant.graph import ActivationQuantizer, QuantizedModel
from quant.scheme import NumberFormat, parse

pytestmark = pytest.mark.skipif(kernels.unusable() is not None, reason=f"int8 kernels: {kernels.unusable()}")


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.expand = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 1)
        self.depthwise, self.project = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1)
        self.last, self.head = nn.Conv2d(4, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(F.hardtanh(self.depthwise(F.relu6(self.expand(x))), 0.0, 6.0))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


class Shared(nn.Module):
    """One value with an integer reader and a float one, then one with three integer readers."""

    def __init__(self):
        super().__init__()
        self.first, self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        x = self.first(x)
        return torch.sin(x) + self.q(x) + self.k(x) * self.v(x)


class Flattened(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(2, 3, 3), nn.Linear(48, 4)

    def forward(self, x):
        return self.linear(torch.relu(self.convolution(x)).flatten(1))


class Branches(nn.Module):
    """A clamp whose input is read elsewhere too, and an output that an integer operator reads."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        before = self.first(x)
        after = self.second(torch.relu(before))
        return after, self.third(after) + before


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) + torch.arange(x.shape[1], dtype=torch.float32)


class Transposed(nn.ConvTranspose2d):
    def __init__(self):
        super().__init__(1, 1, 3)


@functools.cache
def capture(kind, *shape):
    torch.manual_seed(0)
    example = torch.randn(*shape)
    return quant.capture(kind().eval(), (example,)), example


def kinds(lowered):
    return Counter(getattr(call.function, "__qualname__", "simulated").split(".")[0] for call in lowered.calls)


def run_all(graph, lowered, example):
    forward = graph.graphs["forward"]
    with torch.inference_mode():
        return assemble(forward.inputs, lowered.calls, forward.outputs)(example)


def run(graph, lowered, example):
    return run_all(graph, lowered, example)[0]


def test_a_convolutional_net_is_quantized_once_and_stays_in_codes_to_the_end():
    graph, example = capture(Residual, 2, 3, 8, 8)
    quantized = quant.quantize(graph, "static", "int8", [(example,)])
    lowered = lower(quantized)
    assert kinds(lowered) == {
        "static_codes": 2,  # of the image, and of the mean, which is float arithmetic
        "convolution": 5,
        "residual_sum": 1,
        "float_values": 1,
        "aten::mean": 1,
        "static_linear": 1,
    }
    assert lowered.simulated == {"mean_0"}


def test_values_between_integer_operators_are_uint8():
    graph, example = capture(Residual, 2, 3, 8, 8)
    lowered = lower(quant.quantize(graph, "static", "int8", [(example,)]))
    made = {}

    def recording(call):
        def function(*arguments):
            made[call.output] = call.function(*arguments)
            return made[call.output]

        return call._replace(function=function)

    forward = graph.graphs["forward"]
    calls = [recording(call) if not call.keywords else call for call in lowered.calls]
    assemble(forward.inputs, calls, forward.outputs)(example)
    in_float = {name for name, value in made.items() if value.dtype == torch.float32}
    assert in_float == {"values of relu_0", "mean_0", "linear_0"}


def test_readers_of_one_value_share_its_codes():
    graph, example = capture(Shared, 5, 6)
    for method in ("static", "dynamic"):
        lowered = lower(quant.quantize(graph, method, "int8", [(example,)]))
        assert kinds(lowered)["static_codes"] + kinds(lowered)["run_time_codes"] == 2


def test_a_value_that_a_float_operator_reads_too_is_not_reduced_to_codes():
    graph, example = capture(Shared, 5, 6)
    quantized = quant.quantize(graph, "static", "int8", [(example,)])
    expected = quant.simulate(quantized)(example)[0]
    torch.testing.assert_close(run(graph, lower(quantized), example), expected, rtol=1e-4, atol=1e-4)


def test_outputs_and_clamped_values_that_others_read_stay_whole():
    graph, example = capture(Branches, 5, 6)
    quantized = quant.quantize(graph, "static", "int8", [(example,)])
    got, expected = run_all(graph, lower(quantized), example), quant.simulate(quantized)(example)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_an_input_scale_is_not_lost_between_integer_operators():
    graph, example = capture(Flattened, 3, 2, 6, 6)
    quantized = quant.quantize(graph, "static", "int8", [(example,)])
    (edge,) = [edge for edge in quantized.activations if edge[1] == "linear_0"]
    scaled = replace(quantized.activations[edge], input_scale=torch.linspace(0.2, 1.0, 48))
    quantized = replace(quantized, activations={**quantized.activations, edge: scaled})
    lowered = lower(quantized)
    assert "linear_0" in lowered.native
    torch.testing.assert_close(
        run(graph, lowered, example), quant.simulate(quantized)(example)[0], rtol=1e-4, atol=1e-4
    )


def test_different_quantizers_on_one_value_are_kept_apart():
    graph, example = capture(Shared, 5, 6)
    quantized = quant.quantize(graph, "static", "int8", [(example,)])
    edges = [edge for edge in quantized.activations if graph.node(edge).arguments[1].name == "q.weight"]
    coarse = replace(quantized.activations[edges[0]], scale=torch.tensor(0.7), zero_point=torch.tensor(9))
    quantized = replace(quantized, activations={**quantized.activations, edges[0]: coarse})
    lowered = lower(quantized)
    assert kinds(lowered)["static_codes"] == 3
    torch.testing.assert_close(
        run(graph, lowered, example), quant.simulate(quantized)(example)[0], rtol=1e-4, atol=1e-4
    )


def test_codes_pass_a_reshape():
    graph, example = capture(Flattened, 3, 2, 6, 6)
    quantized = quant.quantize(graph, "static", "int8", [(example,)])
    lowered = lower(quantized)
    assert kinds(lowered)["static_codes"] == 1
    torch.testing.assert_close(
        run(graph, lowered, example), quant.simulate(quantized)(example)[0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "format",
    [
        NumberFormat(8, symmetric=True, granularity="group", group_size=4, scale_dtype="float32"),
        NumberFormat(4, symmetric=True, granularity="token", scale_dtype="float32"),
    ],
)
def test_dynamic_quantizers_without_a_kernel_are_simulated(format):
    graph, example = capture(Shared, 5, 6)
    quantized = quant.quantize(graph, "dynamic", "int8")
    quantizer = ActivationQuantizer("dynamic", format)
    quantized = replace(quantized, activations=dict.fromkeys(quantized.activations, quantizer))
    lowered = lower(quantized)
    assert not lowered.native
    assert len(lowered.simulated) == 4
    torch.testing.assert_close(run(graph, lowered, example), quant.simulate(quantized)(example)[0])


@pytest.mark.parametrize("bits", ["int4", "int8_sym_g4"])
def test_grouped_weights_under_a_static_quantizer_are_simulated(bits):
    graph, example = capture(Shared, 5, 6)
    quantized = quant.quantize(graph, "static", "int8", [(example,)])
    quantized = replace(quantized, weights=quant.quantize(graph, "rtn", bits).weights)
    lowered = lower(quantized)
    assert not lowered.native
    torch.testing.assert_close(run(graph, lowered, example), quant.simulate(quantized)(example)[0])


def test_a_transposed_convolution_is_simulated_even_with_one_output_channel():
    graph, example = capture(Transposed, 2, 1, 5, 5)
    quantized = quant.quantize(graph, "static", "int8", [(example,)])
    lowered = lower(quantized)
    assert lowered.simulated == {graph.graphs["forward"].nodes[0].name}
    torch.testing.assert_close(run(graph, lowered, example), quant.simulate(quantized)(example)[0])


def test_a_quantizer_on_something_else_than_a_value_is_an_error():
    graph, _ = capture(Shared, 5, 6)
    quantizer = ActivationQuantizer("dynamic", NumberFormat(8, True, "token"))
    for position in (1, 9):
        with pytest.raises(ValueError, match="not on a value of the graph"):
            lower(QuantizedModel(graph, parse("int8"), activations={("forward", "linear_0", position): quantizer}))


def test_another_device_gets_every_tensor_and_no_kernel():
    graph, example = capture(Positions, 3, 4)
    quantized = quant.quantize(graph, "static", "int8", [(example,)])
    lowered = lower(quantized, "meta")
    assert run(graph, lowered, example.to("meta")).device.type == "meta"
    assert not lowered.native
    assert lowered.notes == ["Quantized operators run in float: torch has no int8 kernels on meta."]


def test_a_type_that_a_node_names_follows_the_model():
    graph, example = capture(Positions, 3, 4)
    assert run(graph, lower(quant.quantize(graph, "float", "bf16")), example.bfloat16()).dtype == torch.bfloat16


def test_constants_beyond_half_precision_are_kept_in_range():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return torch.softmax(self.linear(x).masked_fill(x > 0, torch.finfo(torch.float32).min), -1)

    graph, example = capture(Masked, 3, 4)
    quantized = quant.quantize(graph, "float", "fp16")
    result = run(graph, lower(quantized), example.half())
    torch.testing.assert_close(result.float(), quant.simulate(quantized)(example)[0], rtol=1e-2, atol=1e-3)
