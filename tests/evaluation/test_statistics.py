"""Intervals of means."""

import numpy as np
import pytest

from minigpt4.evaluation.statistics import estimate


def test_an_interval_of_hits_is_that_of_the_normal_approximation():
    values = [1.0] * 300 + [0.0] * 100
    own = estimate(values)
    error = (0.75 * 0.25 / 399) ** 0.5
    assert own.mean == 0.75 and own.standard_error == pytest.approx(error)
    assert own.low == pytest.approx(0.75 - 1.96 * error, abs=0.005)
    assert own.high == pytest.approx(0.75 + 1.96 * error, abs=0.005)
    assert estimate(values) == own  # the same each time


def test_it_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = [(own := estimate(list(rng.random(60)))).low <= 0.5 <= own.high for _ in range(300)]
    assert 0.90 < np.mean(covered) < 0.985


def test_values_that_do_not_differ_have_no_error():
    for values in ([0.5], [1.0] * 9):
        own = estimate(values)
        assert (own.mean, own.standard_error, own.low, own.high) == (values[0], 0, values[0], values[0])
    with pytest.raises(ValueError):
        estimate([])
