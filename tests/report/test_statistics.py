"""Aggregate statistics against numbers worked out by hand, and against rliable."""

from __future__ import annotations

import numpy as np
import pytest

from jdql.report import statistics

A, B, C = [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0], [0.0, 0.0]


def test_mean_weighs_tasks_equally():
    assert statistics.mean([A, B]) == 13.75
    assert statistics.mean([A, C]) == 1.25  # not 10 / 6


def test_median_is_over_the_means_of_tasks():
    assert statistics.median([A, B, C]) == 2.5
    assert statistics.median([A, B]) == 13.75


def test_interquartile_mean_by_hand():
    # 1 2 | 3 4 10 20 | 30 40
    assert statistics.interquartile_mean([A, B]) == 9.25
    assert statistics.interquartile_mean([[9.0, 1.0, 2.0, 3.0, 100.0]]) == 14 / 3
    assert statistics.interquartile_mean([[1.0, 2.0, 6.0]]) == 3.0  # too few to cut


def test_optimality_gap_counts_nothing_above_the_target():
    # 20 - (2.5 + (10 + 20 + 20 + 20) / 4) / 2
    assert statistics.optimality_gap([A, B], target=20.0) == 10.0
    assert statistics.optimality_gap([[90.0, 130.0]]) == 5.0


def test_probability_of_improvement_by_counting():
    # Of six pairs: 1 < 2 twice, 2 = 2 twice, 3 > 2 twice.
    assert statistics.probability_of_improvement([[1.0, 2.0, 3.0]], [[2.0, 2.0]]) == 0.5
    # 4 beats 1 and 2, ties with 4, loses to 9.
    assert (
        statistics.probability_of_improvement([[4.0]], [[1.0, 2.0, 4.0, 9.0]]) == 0.625
    )
    both = statistics.probability_of_improvement(
        [[1.0, 2.0, 3.0], [4.0]], [[2.0, 2.0], [1.0, 2.0, 4.0, 9.0]]
    )
    assert both == 0.5625  # tasks weigh equally, whatever their pairs


def test_probabilities_of_both_directions_add_to_one():
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, size=(2, 3, 4))
    there = statistics.probability_of_improvement(list(x), list(y))
    back = statistics.probability_of_improvement(list(y), list(x))
    assert there + back == pytest.approx(1.0)
    assert there != back


def test_improvement_needs_the_same_tasks():
    with pytest.raises(ValueError, match="same tasks: they have 2 and 1"):
        statistics.probability_of_improvement([A, B], [A])


def test_performance_profile_by_hand():
    profile = statistics.performance_profile([A, [2.0, 2.0]], [0.0, 2.0, 4.0])
    np.testing.assert_array_equal(profile, [1.0, 0.25, 0.0])


def test_resampling_takes_the_named_runs():
    (drawn,) = statistics.resample([[1.0, 2.0]], [np.array([[0, 0], [1, 0]])])
    np.testing.assert_array_equal(drawn, [[1.0, 1.0], [2.0, 1.0]])


def test_statistics_of_many_tables_at_once_equal_one_at_a_time():
    rng = np.random.default_rng(1)
    table = [rng.normal(size=5), rng.normal(size=3)]
    other = [rng.normal(size=2), rng.normal(size=4)]
    here, there = (statistics.draw_indices(t, rng, 7) for t in (table, other))
    many, others = statistics.resample(table, here), statistics.resample(other, there)
    for statistic in (
        statistics.mean,
        statistics.median,
        statistics.interquartile_mean,
        statistics.optimality_gap,
        lambda t: statistics.performance_profile(t, [-1.0, 0.0, 1.0]),
    ):
        alone = [statistic([task[i] for task in many]) for i in range(7)]
        np.testing.assert_allclose(statistic(many), alone, rtol=1e-12)
    alone = [
        statistics.probability_of_improvement(
            [task[i] for task in many], [task[i] for task in others]
        )
        for i in range(7)
    ]
    got = statistics.probability_of_improvement(many, others)
    np.testing.assert_allclose(got, alone, rtol=1e-12)


def test_interval_is_the_percentiles_of_the_draws():
    # Of two runs 0 and 10 all four draws: means 0, 5, 5, 10.
    indices = [np.array([[0, 0], [0, 1], [1, 0], [1, 1]])]
    result = statistics.estimate(statistics.mean, [[0.0, 10.0]], indices, level=0.5)
    assert (result.value, result.low, result.high) == (5.0, 3.75, 6.25)


def test_runs_are_drawn_within_their_task():
    table = [[0.0, 0.0], [100.0, 100.0]]
    indices = statistics.draw_indices(table, np.random.default_rng(0), 50)
    for statistic in (statistics.mean, statistics.interquartile_mean):
        result = statistics.estimate(statistic, table, indices)
        assert result.low == result.high == 50.0


def test_interval_of_a_mean_has_the_width_of_its_standard_error():
    runs = np.random.default_rng(2).normal(50.0, 10.0, 40)
    indices = statistics.draw_indices([runs], np.random.default_rng(3))
    result = statistics.estimate(statistics.mean, [runs], indices)
    expected = 2 * 1.96 * runs.std() / np.sqrt(40)
    assert result.high - result.low == pytest.approx(expected, rel=0.1)
    assert result.low < result.value < result.high


def test_improvement_is_resampled_on_both_sides():
    ours, theirs = [[0.0, 2.0]], [[1.0]]
    every = [np.array([[0, 0], [0, 1], [1, 0], [1, 1]])]
    result = statistics.estimate_improvement(
        ours, theirs, (every, [np.zeros((4, 1), int)]), level=0.5
    )
    # Draws 0, 1/2, 1/2, 1.
    assert (result.value, result.low, result.high) == (0.5, 0.375, 0.625)


def test_curve_draws_whole_runs():
    values = [[0.0, 10.0], [10.0, 0.0]]
    every = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    result = statistics.estimate_curve(values, every, level=0.5)
    np.testing.assert_array_equal(result.value, [5.0, 5.0])
    np.testing.assert_array_equal(result.low, [3.75, 3.75])
    np.testing.assert_array_equal(result.high, [6.25, 6.25])


def test_the_same_generator_gives_the_same_draws():
    first, second = (
        statistics.draw_indices([A, C], np.random.default_rng(5), 3) for _ in "ab"
    )
    for one, two, count in zip(first, second, (4, 2), strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.shape == (3, count)


@pytest.mark.parametrize("table", [[], [[]], [A, []]])
def test_empty_tables_are_refused(table):
    with pytest.raises(ValueError, match="every task a run"):
        statistics.mean(table)


def test_level_must_be_a_share():
    with pytest.raises(ValueError, match="between 0 and 1, not 95"):
        statistics.percentiles([1.0, 2.0], 95.0)


def test_agrees_with_rliable():
    try:
        from rliable import library, metrics
    except (ImportError, TypeError) as error:  # TypeError: it breaks with pandas 3
        pytest.skip(f"rliable cannot be imported: {error}")
    rng = np.random.default_rng(6)
    scores, others = rng.normal(60.0, 20.0, (2, 5, 3))  # five runs, three tasks
    table, other = list(scores.T), list(others.T)
    for ours, theirs in (
        (statistics.interquartile_mean, metrics.aggregate_iqm),
        (statistics.mean, metrics.aggregate_mean),
        (statistics.median, metrics.aggregate_median),
        (statistics.optimality_gap, lambda x: metrics.aggregate_optimality_gap(x, 100)),
    ):
        assert ours(table) == pytest.approx(theirs(scores))
    assert statistics.probability_of_improvement(table, other) == pytest.approx(
        metrics.probability_of_improvement(scores, others)
    )
    limits = np.linspace(0, 120, 25)
    profiles, _ = library.create_performance_profile({"ours": scores}, limits, reps=10)
    profile = statistics.performance_profile(table, limits)
    np.testing.assert_allclose(profile, profiles["ours"])
    _, intervals = library.get_interval_estimates(
        {"ours": scores},
        lambda x: np.array([metrics.aggregate_iqm(x)]),
        reps=4_000,
        random_state=np.random.RandomState(0),
    )
    indices = statistics.draw_indices(table, np.random.default_rng(0), 4_000)
    result = statistics.estimate(statistics.interquartile_mean, table, indices)
    bounds = [result.low, result.high]
    np.testing.assert_allclose(bounds, intervals["ours"][:, 0], atol=1.0)
