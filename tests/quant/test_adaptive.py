import math
from pathlib import Path

import numpy as np
import pytest

from quant.adaptive import Cascade, certainty, margin
from quant.certificate import Certificate
from quant.generation import CacheShape, extended, greedy, read

SHAPE = CacheShape(tensors=2, heads=1, size=1)


class Table:
    """An executable whose scores for input i are the row i, and which notes the batches it was given."""

    evidence, untimed_reason, size_bytes = "measured", None, 10

    def __init__(self, scores):
        self.scores, self.batches = np.asarray(scores, np.float32), []

    def __call__(self, values, doubled):
        assert np.array_equal(doubled, 2 * values)
        self.batches.append(values.tolist())
        return [self.scores[values], 100.0 * values]

    def coverage(self):
        return {"operators_native": 1.0}


def cascade(first, stronger, threshold, **options):
    return Cascade(Path("cascade"), first, stronger, Certificate(threshold, 0.01, 0.95, 300, 0.0, 0.5), **options)


def ask(executable, values):
    values = np.asarray(values)
    return executable(values, 2 * values)


@pytest.fixture
def pair():
    random = np.random.default_rng(0)
    return Table(random.normal(size=(40, 3))), Table(10 + random.normal(size=(40, 3)))


def test_margin_is_the_best_less_the_next():
    assert margin(np.array([[1.0, 4.0, 2.5], [3.0, 3.0, 0.0]])).tolist() == [1.5, 0.0]
    assert margin(np.zeros((2, 5, 7))).shape == (2, 5)


def test_certainty_is_minus_the_entropy_of_the_softmax():
    assert certainty(np.zeros((1, 4)))[0] == pytest.approx(-math.log(4))
    assert certainty(np.array([[1000.0, 0.0]]))[0] == 0.0
    assert certainty(np.array([[0.0, -np.inf]]))[0] == 0.0
    probabilities = np.array([0.5, 0.3, 0.2])
    expected = (probabilities * np.log(probabilities)).sum()
    assert certainty(np.log(probabilities)[None])[0] == pytest.approx(expected)


@pytest.mark.parametrize("measure", [margin, certainty])
def test_nan_is_no_sureness_and_one_class_is_refused(measure):
    assert np.isnan(measure(np.array([[np.nan, 1.0, 2.0]]))).all()
    with pytest.raises(ValueError, match="two classes or more"):
        measure(np.zeros((3, 1)))


@pytest.mark.parametrize("measure", [margin, certainty])
def test_a_batch_is_answered_as_its_samples_are(pair, measure):
    first, stronger = pair
    both = cascade(first, stronger, float(np.median(measure(first.scores))), sureness=measure)
    together = ask(both, range(40))
    alone = [ask(both, [value]) for value in range(40)]
    for place in range(2):
        assert np.array_equal(together[place], np.concatenate([one[place] for one in alone]))
    unsure = measure(first.scores) < both.certificate.threshold
    assert np.array_equal(together[0], np.where(unsure[:, None], stronger.scores, first.scores))
    assert (both.asked, both.escalated) == (80, 2 * unsure.sum())


def test_what_escalates_runs_together_in_one_batch_without_padding(pair):
    first, stronger = pair
    both = cascade(first, stronger, 1.0)
    ask(both, range(40))
    assert stronger.batches == [np.flatnonzero(margin(first.scores) < 1.0).tolist()]


def test_none_or_all_may_escalate(pair):
    first, stronger = pair
    assert np.array_equal(ask(cascade(first, stronger, 0.0), range(40))[0], first.scores)
    assert not stronger.batches
    always = cascade(first, stronger, 0.0).with_threshold(math.inf)
    assert np.array_equal(ask(always, range(40))[0], stronger.scores)
    assert len(stronger.batches) == 1


def test_nan_of_the_first_model_escalates_and_one_of_the_stronger_is_seen(pair):
    first, stronger = pair
    first.scores[3], stronger.scores[5], first.scores[5] = np.nan, np.nan, 0.0
    answers = ask(cascade(first, stronger, 0.0), range(8))[0]
    assert np.array_equal(answers[3], stronger.scores[3])
    assert np.array_equal(answers[5], first.scores[5])  # equal scores have a margin of 0, which is enough here
    assert np.isnan(ask(cascade(first, stronger, 1e-9), [5])[0]).all()


def test_of_a_text_only_the_unsure_tokens_are_the_stronger_ones(pair):
    random = np.random.default_rng(1)
    first, stronger = Table(random.normal(size=(6, 4, 3))), Table(random.normal(size=(6, 4, 3)))
    first.scores[2] = [9.0, 0.0, 0.0]  # this text is sure of every token
    unsure = margin(first.scores) < 0.5
    answers = ask(cascade(first, stronger, 0.5), range(6))[0]
    assert np.array_equal(answers, np.where(unsure[..., None], stronger.scores, first.scores))
    assert 2 not in stronger.batches[0]


def test_scores_may_be_made_of_the_outputs(pair):
    first, stronger = pair
    both = cascade(first, stronger, 0.5, scores=lambda outputs: -outputs)
    assert np.array_equal(
        ask(both, range(40))[0],
        np.where((margin(-first.scores) < 0.5)[:, None], stronger.scores, first.scores),
    )


def test_a_cascade_takes_the_bytes_of_both_and_the_weaker_evidence(pair):
    first, stronger = pair
    first.evidence, stronger.untimed_reason = "simulated", "it runs elsewhere"
    both = cascade(first, stronger, 0.5)
    assert (both.size_bytes, both.evidence, both.untimed_reason) == (20, "simulated", "it runs elsewhere")
    assert both.coverage() == {"operators_native": 1.0}


class Counter:
    """A decoder of a vocabulary of 8 that foretells (its sum of all tokens so far + bias) % 8, sure of some only."""

    def __init__(self, bias, unsure_of=()):
        self.bias, self.unsure_of, self.steps = bias, unsure_of, []

    def step(self, tokens, positions, past, *caches):
        assert len(tokens) == len(caches[0]) == 1
        assert len(positions) == tokens.shape[1]
        assert len(past) == caches[0].shape[2] == positions[0] + 1, "the caches hold what was read, and no more"
        self.steps.append(tokens[0].tolist())
        grown = [np.concatenate([cache, tokens[:, None, :, None]], axis=2, dtype=np.float32) for cache in caches]
        best = int(grown[0].sum() + self.bias) % 8
        logits = np.zeros((1, 8), np.float32)
        logits[0, best] = 0.1 if best in self.unsure_of else 5.0
        return logits, grown


def test_without_doubt_a_text_goes_on_as_the_first_decoder_does():
    prompt = np.array([[3, 1, 2]])
    first, stronger = Counter(1), Counter(4)
    both = cascade(first, stronger, 1.0)
    expected = greedy(Counter(1), read(Counter(1), prompt, SHAPE), 12)
    assert np.array_equal(greedy(both, read(both, prompt, SHAPE), 12), expected)
    assert not stronger.steps


def test_where_all_is_doubtful_a_text_goes_on_as_the_stronger_decoder_does():
    prompt = np.array([[3, 1, 2]])
    both = cascade(Counter(1), Counter(4), math.inf)
    expected = greedy(Counter(4), read(Counter(4), prompt, SHAPE), 12)
    assert np.array_equal(greedy(both, read(both, prompt, SHAPE), 12), expected)


def test_the_stronger_decoder_reads_what_it_missed_at_once():
    first, stronger = Counter(1, unsure_of=(0, 3)), Counter(2)
    both = cascade(first, stronger, 1.0)
    text, tokens = read(both, np.array([[1, 1, 1]]), SHAPE), [1, 1, 1]
    for _ in range(20):
        tokens.append(int(text.logits.argmax()))
        total = sum(tokens[:-1])
        doubtful = (total + 1) % 8 in (0, 3)
        assert tokens[-1] == (total + (2 if doubtful else 1)) % 8
        text = extended(both, text, np.array(tokens[-1:]))
    read_by_stronger = [token for step in stronger.steps for token in step]
    assert read_by_stronger == tokens[: len(read_by_stronger)], "each token once, in order"
    assert max(map(len, stronger.steps)) > 1
    assert text.cache_bytes > 0


def test_texts_of_a_batch_go_on_as_each_alone():
    prompts = np.array([[1, 1, 1], [2, 0, 5], [7, 7, 1]])

    def decoder():
        return cascade(Counter(1, unsure_of=(0, 3)), Counter(2), 1.0)

    together = decoder()
    found = greedy(together, read(together, prompts, SHAPE), 10)
    for prompt, tokens in zip(prompts, found, strict=True):
        alone = decoder()
        assert np.array_equal(greedy(alone, read(alone, prompt[None], SHAPE), 10)[0], tokens)


def test_a_text_can_be_extended_again():
    both = cascade(Counter(1, unsure_of=(0, 3)), Counter(2), 1.0)
    text = read(both, np.array([[1, 1, 1]]), SHAPE)
    assert np.array_equal(greedy(both, text, 9), greedy(both, text, 9))
