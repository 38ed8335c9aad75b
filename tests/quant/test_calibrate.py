import math

import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant import calibrate
from quant.calibrate import (
    CALIBRATORS,
    Histogram,
    entropy_range,
    first_samples,
    mse_range,
    observe_ranges,
    percentile_range,
    range_of,
)
from quant.scheme import NumberFormat

ACTIVATION = NumberFormat(8, symmetric=False, granularity="tensor", scale_dtype="float32")
FOUR_BITS = NumberFormat(4, symmetric=False, granularity="tensor", scale_dtype="float32")
SYMMETRIC = NumberFormat(4, symmetric=True, granularity="tensor", scale_dtype="float32")


@pytest.fixture(scope="module")
def graph():
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)).eval()
    nn.init.eye_(module[0].weight)
    return quant.capture(module, (torch.randn(2, 3),))


def test_ranges_are_the_extremes_over_all_batches(graph):
    batches = [(torch.tensor([[1.0, -2.0, 0.5]]),), (torch.tensor([[3.0, 0.0, 0.0], [0.0, -7.0, 0.0]]),)]
    names = [graph.graphs["forward"].inputs[0], "relu_0"]
    ranges = observe_ranges(graph, names, batches)
    assert ranges[names[0]] == (-7.0, 3.0)
    assert ranges["relu_0"] == (0.0, 3.0)


def test_numpy_batches_are_taken(graph):
    (name,) = graph.graphs["forward"].inputs
    assert observe_ranges(graph, [name], [(torch.ones(1, 3).numpy(),)])[name] == (1.0, 1.0)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, 1])
def test_a_value_that_is_not_finite_is_named_wherever_it_comes(graph, bad, position, calibrator):
    batches = [[torch.ones(1, 3)], [torch.ones(1, 3)]]
    batches[position][0][0, 1] = bad
    with pytest.raises(ValueError, match="calibration saw NaN or infinity at"):
        observe_ranges(graph, list(graph.graphs["forward"].inputs), batches, calibrator, ACTIVATION)


def test_no_data_is_one_sentence(graph):
    with pytest.raises(ValueError, match="needs calibration data"):
        observe_ranges(graph, ["relu_0"], [])


def test_empty_batches_are_one_sentence(graph):
    with pytest.raises(ValueError, match="saw no value at 'relu_0'"):
        observe_ranges(graph, ["relu_0"], [(torch.ones(0, 3),)])


def test_an_unknown_calibrator_is_answered_with_those_there_are(graph):
    with pytest.raises(ValueError, match="unknown calibrator 'max': use one of minmax"):
        observe_ranges(graph, ["relu_0"], [(torch.ones(1, 3),)], "max")


@pytest.mark.parametrize("axis", [None, 1])
def test_a_histogram_is_the_same_however_the_values_are_divided(axis):
    torch.manual_seed(0)
    values = torch.randn(64, 5, 7) * torch.logspace(-3, 3, 64)[torch.randperm(64)][:, None, None]
    values[values.abs() < 1e-3] = 0
    whole, streamed = Histogram(axis), Histogram(axis)
    whole(values)
    for batch in values.split([1, 20, 3, 40]):
        streamed(batch)
    assert torch.equal(whole.limit, streamed.limit)
    assert torch.equal(whole.counts, streamed.counts)
    assert torch.equal(whole.zeros, streamed.zeros)
    assert int(whole.counts.sum() + whole.zeros.sum()) == values.numel()
    assert (whole.limit.float() > (values.abs().max() if axis is None else values.abs().amax((0, 2)))).all()


def test_a_histogram_counts_as_numpy_does():
    values = torch.randn(10_000)
    histogram = Histogram()
    histogram(values)
    limit, bins = histogram.limit.item(), histogram.counts.shape[1]
    assert np.array_equal(histogram.counts[0], np.histogram(values.double(), bins, (-limit, limit))[0])


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("percent", [50.0, 99.0, 99.99, 100.0])
def test_percentiles_are_those_of_numpy_within_a_bin(percent, rectified):
    torch.manual_seed(1)
    values = torch.randn(20_000) * 3
    values = values.relu() if rectified else values
    histogram = Histogram()
    for batch in values.split(3_000):
        histogram(batch)
    width = 2 * histogram.limit.item() / histogram.counts.shape[1]
    low, high = percentile_range(histogram, percent)
    assert low.item() == pytest.approx(np.percentile(values, 100 - percent), abs=width)
    assert high.item() == pytest.approx(np.percentile(values, percent), abs=width)


def squared_error(values, low, high, format):
    """The error of quantizing float64 ``values``, written out anew."""
    steps = 2**format.bits - 1
    scale = (high - low) / steps if not format.symmetric else high / (2 ** (format.bits - 1) - 1)
    zero = 0 if format.symmetric else round(-low / scale)
    bounds = (-steps // 2 + 1, steps // 2) if format.symmetric else (0, steps)
    codes = np.clip(np.round(values / scale) + zero, *bounds)
    return float((((codes - zero) * scale - values) ** 2).sum())


@pytest.mark.parametrize("shape", ["gaussian", "rectified", "outlier", "lopsided", "negative"])
@pytest.mark.parametrize("format", [FOUR_BITS, SYMMETRIC])
def test_mse_is_as_good_as_trying_every_clip(shape, format):
    values = torch.randn(4000 if shape == "lopsided" else 400, generator=torch.Generator().manual_seed(2))
    values = {"gaussian": values, "rectified": values.relu(), "negative": -values.relu()}.get(shape, values)
    if shape == "outlier":
        values[7] = 20.0
    if shape == "lopsided":
        values[7] = 12.0  # worth clipping above, and nothing is below
    histogram = Histogram()
    histogram(values)
    exact, shares = values.double().numpy(), np.linspace(0.02, 1, 50)
    lows, highs = shares * min(exact.min(), 0), shares * max(exact.max(), 0)
    if format.symmetric:
        tried = [squared_error(exact, -high, high, format) for high in shares * abs(exact).max()]
    else:
        tried = [squared_error(exact, low, high, format) for low in set(lows) for high in set(highs) if high > low]
    low, high = (bound.item() for bound in mse_range(histogram, format))
    assert squared_error(exact, low, high, format) <= 1.02 * min(tried)


def divergence(counts, first, last, half, levels):
    """KL divergence of one threshold, bin by bin as in the talk."""
    zero = len(counts) // 2
    start, end = max(first, zero - half), min(last, zero + half)
    reference = [float(count) for count in counts[start:end]]
    merged = [[] for _ in range(levels)]
    for position, count in enumerate(reference):
        merged[position * levels // len(reference)].append(count)
    candidate = []
    for group in merged:
        occupied = sum(count > 0 for count in group)
        candidate += [sum(group) / occupied if count > 0 else 0.0 for count in group]
    reference[0] += sum(counts[:start])
    reference[-1] += sum(counts[end:])
    p, q = np.array(reference) / sum(reference), np.array(candidate) / sum(candidate)
    return sum(a * math.log((a + 1e-30) / (b + 1e-30)) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("rectified", [False, True])
def test_entropy_finds_what_a_direct_search_of_all_thresholds_finds(monkeypatch, rectified):
    monkeypatch.setattr(calibrate, "_BINS", 128)
    torch.manual_seed(3)
    values = torch.distributions.StudentT(3.0).sample((5_000,))
    values = values.relu() if rectified else values
    histogram = Histogram()
    histogram(values)
    counts = histogram.counts[0].tolist()
    occupied = [index for index, count in enumerate(counts) if count]
    first, last = min(occupied[0], 64), occupied[-1] + 1
    reach = max(last - 64, 64 - first)
    found = {half: divergence(counts, first, last, half, 16) for half in range(8, reach + 1)}
    best = min(found, key=found.get)
    assert 8 < best < reach, "the case is too easy: the threshold lies at an end"
    width = 2 * histogram.limit.item() / 128
    low, high = entropy_range(histogram, FOUR_BITS)
    assert high.item() == pytest.approx(best * width)
    assert low.item() == pytest.approx(0.0 if rectified else -best * width)


def test_a_moving_average_forgets_at_its_momentum(graph):
    (name,) = graph.graphs["forward"].inputs
    batches = [(torch.tensor([[-1.0, 0.0, 4.0]]),), (torch.tensor([[-3.0, 0.0, 2.0]]),)]
    low, high = observe_ranges(graph, [name], batches, "moving_average")[name]
    assert (low, high) == pytest.approx((-1.0 * 0.9 - 3.0 * 0.1, 4.0 * 0.9 + 2.0 * 0.1))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_each_channel_gets_the_range_it_gets_alone(calibrator):
    torch.manual_seed(4)
    weight = torch.randn(4, 3, 50) * torch.tensor([1e-4, 1.0, 300.0])[:, None]
    weight[:, 0, 3] = 0
    low, high = range_of(weight, calibrator, ACTIVATION, axis=1)
    for channel in range(3):
        alone = range_of(weight[:, channel], calibrator, ACTIVATION)
        assert (low[channel], high[channel]) == (alone[0][0], alone[1][0])


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("constant", [0.0, 3.0, -3.0, 1e-30])
def test_a_constant_is_within_its_range(calibrator, constant):
    low, high = range_of(torch.full((50,), constant), calibrator, ACTIVATION)
    assert min(low.item(), 0.0) <= constant * 0.999
    assert max(high.item(), 0.0) >= constant * 0.999
    assert math.isfinite(high - low)


def test_a_clip_keeps_an_outlier_from_taking_the_codes():
    values = torch.randn(20_000)
    values[0] = 50.0
    for calibrator in ("percentile", "mse", "entropy"):
        assert range_of(values, calibrator, FOUR_BITS)[1].item() < 25


def test_the_first_samples_are_taken_across_batches():
    batches = [(np.arange(6).reshape(3, 2), np.arange(3)), (np.arange(6, 10).reshape(2, 2), np.arange(3, 5))]
    for count, wanted in ((2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4])):
        found = first_samples(batches, count)
        assert torch.cat([rows for _, rows in found]).tolist() == wanted
        assert torch.cat([pairs for pairs, _ in found])[:, 0].tolist() == [2 * row for row in wanted]
