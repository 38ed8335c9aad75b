"""Cases that generate: which there are, and what is refused."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.generating import CacheError, Decoders, _escalated, _per_token, _with_rate, _without_cache
from benchmarks.load import Load
from benchmarks.matrix import Case, generators, models
from benchmarks.timing import PairedTimes
from benchmarks.workshop import Artifact
from fixtures.model import Generation, Samples
from quant.certificate import Certificate
from quant.generation import CacheShape

SHAPE = CacheShape(tensors=0, heads=1, size=1)
CASE = Case("reviews_gpt", "float", "fp32", "torch")
ADAPTIVE = Case("reviews_gpt", "adaptive", "int8", "torch")


class Counting:
    """Foretells the token after the last; with a cache it may lose count."""

    def __init__(self, wrong_at=None):
        self.wrong_at = wrong_at

    def __call__(self, tokens):
        return [np.eye(64)[tokens + 1]]

    def step(self, tokens, positions, past):
        following = tokens[:, -1] + (2 if len(past) - 1 == self.wrong_at else 1)
        return np.eye(64)[following], []


class Caching:
    """Foretells the token ``ahead`` of the last, the surer the higher it is, and keeps what it read."""

    def __init__(self, ahead):
        self.ahead = ahead

    def step(self, tokens, positions, past, cache):
        grown = np.concatenate([cache, tokens[:, None, :, None]], axis=2, dtype=np.float32)
        assert len(past) == positions[0] + 1
        assert grown.shape[2] == positions[-1] + 2
        return tokens[:, -1:] * np.eye(64)[tokens[:, -1] + self.ahead], [grown]


def decoders(executable, monkeypatch, case_seconds=100.0, shape=SHAPE):
    generation = Generation(build=None, cache=shape, prompt_tokens=3, new_tokens=4, prompts=5)
    samples = Samples((np.arange(30).reshape(5, 6),), None, np.arange(5))
    workshop = SimpleNamespace(
        model=lambda name: SimpleNamespace(generation=generation, evaluation=samples.first),
        settings=SimpleNamespace(evaluation_samples=None, case_seconds=case_seconds),
        calibration=lambda name: samples,
        quantize=lambda case, calibration: None,
        baseline=lambda case: SimpleNamespace(executable=Counting()),
        report=lambda text: None,
    )
    made = Decoders(workshop)
    monkeypatch.setattr(made, "compile", lambda case, tables: SimpleNamespace(case=case, executable=executable))
    return made


def test_only_decoders_generate_and_never_with_activations_in_fixed_ranges():
    cases = generators()
    assert {case.model for case in cases} == {
        name for name, entry in models().items() if "GENERATES" in entry.constants
    }
    assert {case.method_entry.family for case in cases} == {"float", "weight_only", "dynamic"}
    assert Case("reviews_gpt", "rtn", "int4", "coreml") in cases


def test_float_goes_on_with_every_prompt_and_the_same_without_its_cache(monkeypatch):
    made = decoders(Counting(), monkeypatch)
    artifact, found = made.baseline(CASE)
    assert found.tokens.tolist() == [[n + 3, n + 4, n + 5, n + 6] for n in (0, 6, 12, 18, 24)]
    assert np.array_equal(found.logits.argmax(-1), found.tokens)
    assert not found.truncated
    assert made.baseline(CASE)[0] is artifact


def test_a_cache_that_changes_what_is_generated_is_refused(monkeypatch):
    with pytest.raises(CacheError, match=r"generates 6 with its cache where it generates 5 without, in place 3"):
        decoders(Counting(wrong_at=4), monkeypatch).baseline(CASE)


def test_after_the_cap_the_prompts_left_are_not_gone_on_with(monkeypatch):
    _, found = decoders(Counting(), monkeypatch, case_seconds=0.0).baseline(CASE)
    assert found.truncated
    assert len(found.tokens) == 1


@pytest.mark.parametrize(("threshold", "from_first"), [(-np.inf, 1.0), (np.inf, 0.0), (5.0, 17 / 20)])
def test_a_cascade_takes_steps_by_the_threshold_that_whole_texts_certified(threshold, from_first, monkeypatch):
    made = decoders(Caching(1), monkeypatch, shape=CacheShape(tensors=1, heads=1, size=1))
    certified = SimpleNamespace(path=Path("whole"), certificate=Certificate(threshold, 0.01, 0.95, 300, 0.0, 0.5))
    made._workshop.compile = lambda case, tables, calibration: Artifact(case, certified, None, None)
    artifact = made._cascade(ADAPTIVE, None, Artifact(ADAPTIVE.first, Caching(2), None, None))
    _, floats = made.baseline(ADAPTIVE.baseline)
    ahead = made.logits(artifact, floats.tokens).argmax(axis=-1) - floats.tokens + 1
    read = floats.tokens - 1
    assert np.array_equal(ahead == 2, read >= threshold), "the first model foretells two ahead"
    assert (ahead == 2).mean() == from_first
    assert _escalated(artifact) == {"escalated": pytest.approx(1 - from_first)}
    assert _escalated(artifact.parts[0]) == {}


def test_without_a_cache_the_whole_text_is_read_for_each_token():
    read = []

    def executable(tokens):
        read.append(tokens.shape[1])
        return Counting()(tokens)

    assert _without_cache(executable, np.array([3, 4]), 3).tolist() == [5, 6, 7]
    assert read == [2, 3, 4]


def test_the_time_of_a_round_is_shared_by_its_tokens():
    times = PairedTimes(np.array([8.0]), np.array([4.0]), np.array([8.0]), Load(0.0, 1, 0.0, 1.0))
    per_token = _per_token(times)
    assert (per_token.baseline[0], per_token.variant[0], per_token.twin[0]) == (1.0, 0.5, 1.0)
    assert _with_rate({"p50": 0.5}, 2)["tokens_per_second"] == 4.0
    assert _with_rate({"p50": None}, 2)["tokens_per_second"] is None
