from itertools import combinations

import numpy
import pytest

from reports.changes import FALSE_ALARMS, SHORTEST, change_points


def exhaustive(values, count):
    """The best boundaries of all with ``count`` changes, by trying every one."""
    n = len(values)

    def error(cuts):
        return sum(((part - part.mean()) ** 2).sum() for part in numpy.split(values, cuts))

    def lasts(cuts):
        return all(b - a >= SHORTEST for a, b in zip((0, *cuts), (*cuts, n), strict=True))

    return min((cuts for cuts in combinations(range(1, n), count) if lasts(cuts)), key=error)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_planted_steps_are_found_where_they_are(seed, steps):
    random = numpy.random.default_rng(seed)
    cuts = [5, 11, 16][:steps]
    levels = numpy.repeat([0.0, 1.0, 0.2, 1.4][: steps + 1], numpy.diff([0, *cuts, 22]))
    values = 5 + levels + random.normal(0, 0.05, 22)
    assert change_points(values) == cuts
    assert tuple(cuts) == exhaustive(values, steps)


@pytest.mark.parametrize("seed", range(8))
def test_the_segmentation_is_the_best_there_is(seed):
    """Steps as small as their noise, so that the best boundary is not the planted one."""
    random = numpy.random.default_rng(seed)
    values = numpy.repeat([0.0, 2.5, -1.0], 6) + random.normal(0, 1, 18)
    found = change_points(values)
    assert tuple(found) == (exhaustive(values, len(found)) if found else ())


@pytest.mark.parametrize("length", [4, 6, 9, 15, 30])
def test_noise_shows_a_change_in_one_of_a_hundred_series(length):
    random = numpy.random.default_rng(length)
    series = 1e4 + 3 * random.standard_normal((1500, length))
    rate = sum(bool(change_points(one)) for one in series) / len(series)
    # Three standard errors of 1,500 series above the stated rate; and not never, or it would find nothing either.
    assert 0 < rate <= FALSE_ALARMS + 3 * (FALSE_ALARMS / 1500) ** 0.5


def test_heavy_tails_raise_that_rate_a_little():
    series = numpy.random.default_rng(0).standard_t(3, (1500, 12))
    assert sum(bool(change_points(one)) for one in series) / len(series) <= 2 * FALSE_ALARMS


def test_a_lone_outlier_is_no_change():
    values = 1 + 0.01 * numpy.random.default_rng(0).standard_normal(14)
    values[6] = 3.0
    assert change_points(values) == []


def test_a_figure_that_repeats_exactly_changes_whenever_it_lasts():
    assert change_points([7, 7, 8, 8]) == [2]
    assert change_points([0.94] * 5 + [0.938] * 2) == [5]
    assert change_points([7, 7, 7, 8]) == []
    assert change_points([7, 7, 7, 9, 9, 9, 7, 7]) == [3, 6]


ALIKE = [1 + 1e-9 * index for index in range(8)]


@pytest.mark.parametrize("values", [[], [1.0], [1, 2, 3], [0, 0, 0, 0, 0], [0.1] * 30, ALIKE])
def test_too_few_or_equal_values_show_none(values):
    assert change_points(values) == []


def test_shift_and_scale_do_not_matter():
    values = numpy.repeat([1.0, 2.0], 8) + numpy.random.default_rng(1).normal(0, 0.2, 16)
    assert change_points(values) == change_points(1e-3 * values) == change_points(40 - 9 * values) == [8]
