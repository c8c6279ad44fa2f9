"""Schedules: published values, limits, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from jdql.diffusion import schedules


def test_vp_of_five_steps_has_the_published_values():
    schedule = schedules.make_schedule("vp", 5)
    beta = [0.19587, 0.45882, 0.63578, 0.75488, 0.83503]
    abar = [0.804125, 0.435178, 0.158500, 0.038852, 0.006409]
    np.testing.assert_allclose(schedule.beta, beta, atol=5e-6)
    np.testing.assert_allclose(schedule.signal**2, abar, atol=5e-7)


def test_cosine_of_five_steps_has_the_authors_values():
    schedule = schedules.make_schedule("cosine", 5)
    abar = [0.898706, 0.647478, 0.340810, 0.094046, 0.000094]
    np.testing.assert_allclose(schedule.signal**2, abar, atol=1e-6)


def test_linear_of_five_steps_hardly_reaches_any_noise():
    schedule = schedules.make_schedule("linear", 5)
    np.testing.assert_allclose(schedule.beta, [1e-4, 5.075e-3, 0.01005, 0.015025, 2e-2])
    assert schedule.signal[-1] ** 2 == pytest.approx(0.950630, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5, 50, 1000])
def test_vp_ends_at_the_same_noise_for_every_number_of_steps(steps):
    schedule = schedules.make_schedule("vp", steps)
    assert schedule.signal[-1] ** 2 == pytest.approx(np.exp(-5.05), rel=1e-12)


@pytest.mark.parametrize("name", ["vp", "linear", "cosine"])
@pytest.mark.parametrize("steps", [2, 5, 20, 100])
def test_every_schedule_preserves_variance_and_only_adds_noise(name, steps):
    schedule = schedules.make_schedule(name, steps)
    np.testing.assert_allclose(schedule.signal**2 + schedule.noise**2, 1, atol=1e-14)
    assert np.all(np.diff(schedule.noise) > 0)
    assert schedule.beta.dtype == np.float64


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [("sine", 5, "one of"), ("vp", 0, "at least 1")],
)
def test_bad_settings_are_refused(name, steps, message):
    with pytest.raises(ValueError, match=message):
        schedules.make_schedule(name, steps)


def test_betas_outside_the_unit_interval_are_refused():
    # The linear schedule rescaled by 1000 / K, as some codes have it, at K = 5.
    with pytest.raises(ValueError, match="within"):
        schedules.from_betas(np.linspace(0.02, 4.0, 5))


GRIDS = [
    schedules.even_grid,
    schedules.log_snr_grid,
    schedules.flow_grid,
    schedules.karras_grid,
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ["vp", "linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_grids_ascend_from_the_first_step_to_the_last(grid, name, steps):
    schedule = schedules.make_schedule(name, 20)
    k = grid(schedule, steps)
    assert k.shape == (steps,)
    assert k[-1] == 19
    assert steps == 1 or k[0] == 0
    assert np.all(np.diff(k) > 0)
    refined = schedules.refine(schedule, k)
    np.testing.assert_allclose(refined.signal**2 + refined.noise**2, 1, atol=1e-14)
    np.testing.assert_allclose(
        np.cumprod(1 - refined.beta), refined.signal**2, rtol=1e-9
    )


def test_grids_are_even_in_their_own_clock():
    schedule = schedules.make_schedule("vp", 50)
    clocks = [
        lambda a, s: np.log(a / s),
        lambda a, s: a / (a + s),
        lambda a, s: (s / a) ** (1 / 7),
    ]
    for grid, clock in zip(GRIDS[1:], clocks, strict=True):
        levels = schedules.refine(schedule, grid(schedule, 9))
        gaps = np.diff(clock(levels.signal, levels.noise))
        np.testing.assert_allclose(gaps, gaps[0], rtol=1e-9)


def test_an_even_grid_rounds_where_there_are_enough_trained_steps():
    schedule = schedules.make_schedule("vp", 20)
    assert schedules.even_grid(schedule, 4).tolist() == [0, 6, 13, 19]
    assert schedules.even_grid(schedule, 20).tolist() == list(range(20))
    assert schedules.even_grid(schedule, 39).tolist() == [i / 2 for i in range(39)]


def test_the_leading_grid_counts_in_strides_from_zero():
    schedule = schedules.make_schedule("cosine", 100)
    assert schedules.leading_grid(schedule, 10).tolist() == list(range(0, 100, 10))
    assert schedules.leading_grid(schedule, 8)[-1] == 84  # 12 steps of 12 are left out
    assert schedules.leading_grid(schedule, 16)[-1] == 90
    with pytest.raises(ValueError, match="at most diffusion_steps, 100, on the"):
        schedules.leading_grid(schedule, 101)


def test_between_steps_the_logarithm_of_the_signal_is_linear():
    schedule = schedules.make_schedule("vp", 5)
    middle = schedules.refine(schedule, np.array([1.0, 1.5, 2.0]))
    assert middle.signal[1] == pytest.approx(
        np.sqrt(schedule.signal[1] * schedule.signal[2]), rel=1e-12
    )
    np.testing.assert_allclose(middle.noise[[0, 2]], schedule.noise[1:3], rtol=1e-12)
    every = np.linspace(0, 4, 33)
    back = schedules.step_of(
        schedule, schedules.log_snr(schedules.refine(schedule, every))
    )
    np.testing.assert_allclose(back, every, atol=1e-9)
    assert schedules.refine(schedule, np.arange(5)) is schedule


@pytest.mark.parametrize("k", [[], [2, 1], [0, 5], [-1, 0], [1, 1]])
def test_levels_off_the_schedule_are_refused(k):
    with pytest.raises(ValueError, match=r"must ascend within 0\.\.4"):
        schedules.refine(schedules.make_schedule("vp", 5), np.array(k))
