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
