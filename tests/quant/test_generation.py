"""Steps with a cache, against the same decoder reading the whole text for every token."""

import numpy as np
import pytest
import torch

import quant
from fixtures.zoo._llama import Decoder, Step
from quant.backends import targets
from quant.generation import CacheShape, Simulated, capture_step, carried_over, extended, followed, greedy, read
from quant.graph import ActivationQuantizer

SIZES = {"vocabulary": 48, "context": 24, "layers": 2, "width": 64, "heads": 4, "shared": 2}
SHAPE = CacheShape(tensors=4, heads=2, size=16)
PROMPT = np.array([[1, 5, 9, 2, 40], [7, 7, 0, 3, 11]])
BACKENDS = [name for name, target in targets().items() if not target.missing() and not target.elsewhere()]


def modules():
    torch.manual_seed(0)
    decoder, step = Decoder(**SIZES).eval(), Step(**SIZES).eval()
    for value in decoder.parameters():
        torch.nn.init.normal_(value, std=0.3)
    step.load_state_dict(decoder.state_dict())
    return decoder, step


@pytest.fixture(scope="module")
def whole():
    examples = (torch.randint(0, 48, (2, 7)),)
    return quant.capture(modules()[0], examples, ({0: "batch", 1: "sequence"},))


@pytest.fixture(scope="module")
def step():
    return capture_step(modules()[1], SHAPE)


def tables(whole, method, bits):
    return quant.quantize(whole, method, bits)


def without_cache(module, prompt, count):
    text = torch.from_numpy(prompt)
    logits = []
    with torch.inference_mode():
        for _ in range(count):
            logits.append(module(text)[:, -1])
            text = torch.cat([text, logits[-1].argmax(-1, keepdim=True)], 1)
    return text[:, prompt.shape[1] :].numpy(), torch.stack(logits, 1).numpy()


def test_tokens_with_a_cache_are_those_without(whole, step):
    expected, logits = without_cache(modules()[0], PROMPT, 12)
    decoder = Simulated(carried_over(tables(whole, "float", "fp32"), step))
    text = read(decoder, PROMPT, SHAPE)
    assert np.array_equal(greedy(decoder, text, 12), expected)
    np.testing.assert_allclose(followed(decoder, text, expected), logits, rtol=1e-4, atol=1e-4)


def test_a_prompt_may_be_read_in_parts_and_a_text_extended_twice(whole, step):
    decoder = Simulated(carried_over(tables(whole, "float", "fp32"), step))
    text = read(decoder, PROMPT[:, :2], SHAPE)
    for place in range(2, 5):
        text = extended(decoder, text, PROMPT[:, place])
    once = read(decoder, PROMPT, SHAPE)
    np.testing.assert_allclose(text.logits, once.logits, rtol=1e-4, atol=1e-4)
    assert text.length == once.length == 5
    first, second = (extended(decoder, once, np.array([4, 4])).logits for _ in range(2))
    assert np.array_equal(first, second)


def test_what_stands_before_every_text_is_never_seen(whole, step):
    decoder = Simulated(carried_over(tables(whole, "float", "fp32"), step))
    before = read(decoder, PROMPT, SHAPE).logits
    loud = [np.full_like(cache, 1e3) for cache in SHAPE.empty(2)]
    after, _ = decoder.step(PROMPT, np.arange(5), np.array([2**31 - 1]), *loud)
    assert np.array_equal(before, after)


@pytest.mark.parametrize(("method", "bits"), [("rtn", "int4"), ("dynamic", "int8"), ("dynamic", "w4a8")])
def test_tables_of_whole_texts_mean_the_same_in_steps(whole, step, method, bits):
    made = tables(whole, method, bits)
    decoder = Simulated(carried_over(made, step))
    text = read(decoder, PROMPT, SHAPE)
    tokens = greedy(decoder, text, 6)
    texts = torch.from_numpy(np.concatenate([PROMPT, tokens[:, :-1]], 1))
    with torch.inference_mode():
        expected = quant.simulate(made)(texts)[0][:, 4:].numpy()
    # Eight-bit activations at the border of two codes may fall to either side.
    tolerance = 1e-4 if method == "rtn" else 0.02
    found = followed(decoder, text, tokens)
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
    assert len(carried_over(made, step).activations) == len(made.activations)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_generates_what_the_tables_mean(whole, step, backend, tmp_path):
    made = carried_over(tables(whole, "rtn", "int4"), step)
    executable, decoder = quant.compile(made, backend, tmp_path), Simulated(made)
    tokens = greedy(decoder, read(decoder, PROMPT, SHAPE), 6)
    text = read(executable, PROMPT, SHAPE)
    found = followed(executable, text, tokens)
    expected = followed(decoder, read(decoder, PROMPT, SHAPE), tokens)
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
    assert text.cache_bytes == 4 * 4 * 2 * 2 * (5 + 1) * 16


def test_fixed_ranges_are_refused(whole, step):
    made = quant.quantize(whole, "static_plain", "int8", [(PROMPT,)])
    with pytest.raises(ValueError, match="no activations in fixed ranges"):
        carried_over(made, step)


def test_other_weights_are_refused(whole):
    other = Step(**SIZES).eval()
    with pytest.raises(ValueError, match="does not have the parameter"):
        carried_over(tables(whole, "rtn", "int4"), capture_step(other, SHAPE))


def test_a_quantizer_without_a_weight_is_refused(whole, step):
    made = tables(whole, "rtn", "int4")
    addition = next(node.name for node in whole.graphs["forward"].nodes if node.operator == "aten.add.Tensor")
    made.activations["forward", addition, 0] = ActivationQuantizer("none", input_scale=torch.ones(64))
    with pytest.raises(ValueError, match=f"'{addition}' has no counterpart"):
        carried_over(made, step)


def test_a_step_that_returns_no_caches_is_refused():
    class Forgetful(Step):
        def forward(self, input_ids, positions, past, *caches):
            return super().forward(input_ids, positions, past, *caches)[:3]

    with pytest.raises(ValueError, match="must return logits and 4 caches"):
        capture_step(Forgetful(**SIZES).eval(), SHAPE)
