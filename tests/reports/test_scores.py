import numpy
import pytest

from reports.scores import scores_of, shared_samples


def test_what_was_packed_is_unpacked(with_scores):
    right, error = numpy.arange(50) % 3 > 0, numpy.linspace(0.1, 0.9, 50)
    record = with_scores(right, error=error, clusters=numpy.arange(50) // 2)
    scores = scores_of(record)
    assert scores.contributions["accuracy"].numerators.tolist() == right.tolist()
    assert scores.contributions["error"].value() == pytest.approx(float(numpy.sqrt(error.mean())), rel=1e-6)
    assert scores.contributions["sqnr_db"].value() == pytest.approx(-10 * numpy.log10(error.mean()), rel=1e-5)
    assert scores.clusters.tolist() == (numpy.arange(50) // 2).tolist()
    assert "kl" not in scores.contributions


def test_samples_on_their_own_need_no_clusters(with_scores):
    assert scores_of(with_scores([True] * 9)).clusters is None


@pytest.mark.parametrize(("first", "second", "shared"), [(9, 9, 9), (9, 5, 5), (4, 9, 4)])
def test_the_shared_samples_are_a_common_beginning(with_scores, first, second, shared):
    a, b = (scores_of(with_scores([True] * n)) for n in (first, second))
    assert shared_samples(a, b) == shared


def test_samples_of_other_data_are_not_shared(with_scores):
    one = scores_of(with_scores([True] * 4, digests=[1, 2, 3, 4]))
    assert shared_samples(one, scores_of(with_scores([True] * 4, digests=[1, 2, 9, 4]))) == 2
    assert shared_samples(one, scores_of(with_scores([True] * 4, digests=[9, 2, 3, 4]))) == 0


def test_records_without_digests_share_the_data_set_or_nothing(make_record):
    record = make_record(**{"accuracy.n": 500})
    scores = scores_of(record)
    assert len(scores.contributions["accuracy"]) == 500
    assert shared_samples(scores, scores_of(record)) == 500
    other = make_record(**{"accuracy.n": 500, "scores.dataset_sha256": "e" * 64})
    assert shared_samples(scores, scores_of(other)) == 0
    none = make_record(scores={"reason": "none"}, accuracy={"reason": "no labels"})
    assert scores_of(none).contributions == {}
    assert shared_samples(scores_of(none), scores) == 0


def test_damaged_scores_are_refused(with_scores):
    with pytest.raises(ValueError, match="not base64"):
        scores_of(with_scores([True] * 9, **{"scores.agreement": "!"}))
