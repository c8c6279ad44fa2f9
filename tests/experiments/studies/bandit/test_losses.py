"""The baselines' losses against values computed by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.bandit import losses

LN2, E = np.log(2.0), np.exp


def test_gaussian_log_prob_of_two_dimensions() -> None:
    action, mean = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2))
    log_std = jnp.array([[0.0, LN2]])  # one standard deviation off in each
    expected = -0.5 - 0.5 - LN2 - np.log(2 * np.pi)
    np.testing.assert_allclose(
        losses.gaussian_log_prob(action, mean, log_std), [expected], rtol=1e-6
    )


def test_kl_to_the_standard_normal() -> None:
    mean, log_std = jnp.array([[0.0, 1.0]]), jnp.array([[0.0, LN2]])
    kl = losses.kl_to_standard_normal(mean, log_std)
    np.testing.assert_allclose(kl, [[0.0, 0.5 * (1 + 4 - 1) - LN2]], atol=1e-6)


def test_vae_loss_averages_over_dimensions_and_halves_the_kl() -> None:
    action, reconstruction = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    mean, log_std = jnp.array([[1.0, 0.0, 0.0, 0.0]]), jnp.zeros((1, 4))
    loss = losses.vae_loss(action, reconstruction, mean, log_std)
    np.testing.assert_allclose(loss, 1 / 2 + 0.5 * (0.5 / 4), rtol=1e-6)


def test_mmd_of_two_point_sets() -> None:
    x, y = jnp.array([[[0.0], [1.0]]]), jnp.array([[[0.0], [3.0]]])
    xx, yy = (2 + 2 * E(-1)) / 4, (2 + 2 * E(-3)) / 4
    xy = (1 + E(-3) + E(-1) + E(-2)) / 4
    expected = np.sqrt(xx + yy - 2 * xy + 1e-6)
    # sigma 1/2: the kernel is exp(-distance).
    np.testing.assert_allclose(losses.laplacian_mmd(x, y, 0.5), [expected], rtol=1e-5)


def test_mmd_adds_distances_over_dimensions() -> None:
    x, y = jnp.zeros((1, 1, 2)), jnp.array([[[1.0, -2.0]]])
    expected = np.sqrt(2 - 2 * E(-3.0 / 40.0) + 1e-6)
    np.testing.assert_allclose(losses.laplacian_mmd(x, y), [expected], rtol=1e-5)


def test_mmd_keeps_observations_apart() -> None:
    x = jnp.array([[[0.0]], [[5.0]]])
    found = losses.laplacian_mmd(x, x[::-1], 0.5)
    expected = np.sqrt(2 - 2 * E(-5) + 1e-6)
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-5)
    np.testing.assert_allclose(losses.laplacian_mmd(x, x, 0.5), 1e-3, rtol=1e-3)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_mmd_has_a_finite_slope(shift: float) -> None:
    x = jnp.array([[[0.0], [1.0]]])
    slope = jax.grad(lambda d: losses.laplacian_mmd(x, x + d, 0.5).sum())(shift)
    assert np.isfinite(slope)
