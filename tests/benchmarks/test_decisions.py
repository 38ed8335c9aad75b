import numpy as np
import pytest

from benchmarks.decisions import Decisions, NoCascade, certified, compared, joined, resplit
from fixtures.model import Metric, Model, Samples

CLASSIFIER = Model("fake", "encoder", None, ("x",), ({0: "batch"},), None, None, 10, Metric("accuracy", "higher"))
UNLABELLED = Model("fake", "encoder", None, ("x",), ({0: "batch"},), None, None, 10, None, "nobody labelled it")


def samples(labels, clusters=None):
    n = len(labels)
    return Samples((np.zeros((n, 1)),), np.asarray(labels), np.arange(n) if clusters is None else np.asarray(clusters))


def drawn(seed, count, sources=None):
    """Decisions on a population whose first model is the less often wrong, the surer it is."""
    random = np.random.default_rng(seed)
    sureness = random.exponential(1.0, count).astype(np.float32)
    right = random.random(count) < 0.9
    first = np.where(random.random(count) < 0.2 * np.exp(-2 * sureness), ~right, right)
    sources = np.arange(count) if sources is None else sources
    return Decisions(sureness, first, right, np.arange(count), sources)


def test_answers_are_compared_one_by_one():
    first = np.array([[0.0, 2.0], [1.0, 0.5], [3.0, 0.0]])
    stronger = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    found = compared(CLASSIFIER, first, stronger, samples([1, 1, 0], [7, 8, 7]), begin=4)
    assert found.sureness.tolist() == [2.0, 0.5, 3.0]
    assert found.first_right.tolist() == [True, False, True]
    assert found.stronger_right.tolist() == [True, True, False]
    assert found.lost.tolist() == [False, True, False]
    assert (found.sample.tolist(), found.source.tolist()) == ([4, 5, 6], [7, 8, 7])
    assert found.right(0.5).tolist() == [True, False, True]
    assert found.right(np.inf).tolist() == found.stronger_right.tolist()


def test_each_token_of_a_text_is_an_answer_and_a_negative_label_is_none():
    scores = np.eye(4)[[[0, 1, 2], [3, 3, 3]]]
    found = compared(CLASSIFIER, scores, scores, samples([[0, 1, 1], [3, -100, 0]]), begin=0)
    assert found.first_right.tolist() == [True, True, False, True, False]
    assert found.sample.tolist() == [0, 0, 0, 1, 1]


def test_without_labels_the_first_model_is_right_where_it_agrees():
    first, stronger = np.eye(3)[[0, 1, 2]], np.eye(3)[[0, 2, 2]]
    found = compared(UNLABELLED, first, stronger, samples([0, 0, 0]), begin=0)
    assert found.first_right.tolist() == [True, False, True]
    assert found.stronger_right.all()


@pytest.mark.parametrize("scores", [np.zeros((3, 1)), np.zeros((3, 2, 4, 4))])
def test_outputs_that_are_no_classes_are_refused(scores):
    with pytest.raises(NoCascade, match="no scores of the classes"):
        compared(CLASSIFIER, scores, scores, samples([0, 0, 0]), begin=0)


def test_of_samples_of_one_source_one_certifies():
    """Losses are then 0 or 1, and the binomial test is exact."""
    found = certified(drawn(0, 800, sources=np.arange(800) // 2), 0.02)
    assert found.sources == 400
    assert found.lost * 400 == pytest.approx(round(found.lost * 400))


def test_the_guarantee_holds_on_resplits_at_the_stated_rate():
    held = [resplit(drawn(seed, 2000), 800, 0.02, count=5).held for seed in range(20)]
    assert sum(held) >= 0.95 * 100
    once = resplit(drawn(0, 2000), 800, 0.02)
    assert (once.count, once.largest_loss <= 0.02) == (20, once.held == 20)


def test_resplits_see_a_threshold_that_promises_too_much():
    """With a limit far below what is shown on so few sources nothing is lost: float answers always."""
    assert resplit(drawn(0, 400), 100, 0.01).largest_loss == 0.0


def test_parts_are_joined_in_their_order():
    one, two = drawn(0, 5), drawn(1, 3)
    assert joined([one, two]).sureness.tolist() == [*one.sureness, *two.sureness]
