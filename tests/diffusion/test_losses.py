"""The denoising loss, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import constraints, losses, process, schedules

SCHEDULE = schedules.make_schedule("vp", 5)
X0 = jnp.array([[1.0, -1.0], [0.5, 0.0]])
NOISE = jnp.array([[0.0, 2.0], [-1.0, 1.0]])
K = jnp.array([0, 4])


def zero(x_k, k):
    del k
    return jnp.zeros_like(x_k)


def test_mean_over_batch_and_dimensions():
    loss = losses.denoising_loss(SCHEDULE, zero, X0, K, NOISE)
    assert loss.item() == pytest.approx((0 + 4 + 1 + 1) / 4)


def test_weights_multiply_samples():
    weights = jnp.array([1.0, 3.0])
    loss = losses.denoising_loss(SCHEDULE, zero, X0, K, NOISE, weights=weights)
    assert loss.item() == pytest.approx((1 * 2 + 3 * 1) / 2)


def test_absolute_error():
    loss = losses.denoising_loss(SCHEDULE, zero, X0, K, NOISE, error=jnp.abs)
    assert loss.item() == pytest.approx((0 + 2 + 1 + 1) / 4)


def test_weights_of_any_leading_axes():
    """Errors of 0, 4, 1, 1: weighed by sample, by step of a trajectory, by entry."""
    x0, noise = X0[:, :, None], NOISE[:, :, None]  # [B, H, A]
    for weights, expected in (
        ([1.0, 3.0], 0 + 4 + 3 + 3),
        ([[1.0, 0.5], [2.0, 4.0]], 0 + 2 + 2 + 4),
        ([[[1.0], [0.25]]], 0 + 1 + 1 + 0.25),
    ):
        weights = jnp.array(weights)
        loss = losses.denoising_loss(SCHEDULE, zero, x0, K, noise, weights=weights)
        assert loss.item() == pytest.approx(expected / 4)


def test_weights_of_more_axes_than_the_errors_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 1, 1\) have more axes than"):
        losses.denoising_loss(SCHEDULE, zero, X0, K, NOISE, weights=jnp.ones((2, 1, 1)))


def test_an_error_may_reduce_the_last_axis():
    loss = losses.denoising_loss(
        SCHEDULE,
        zero,
        X0,
        K,
        NOISE,
        error=losses.squared_error,
        weights=jnp.array([1.0, 3.0]),
    )
    assert loss.item() == pytest.approx((1 * 2 + 3 * 1) / 2)


@pytest.mark.parametrize("kind", ["EPSILON", "X0", "V"])
def test_clamped_entries_are_seen_clean_and_count_as_no_error(kind):
    """A network that misses every target by 0.5; half of a [2, 2, 1] is held."""
    kind = getattr(process, kind)
    x0, noise = X0[:, :, None], NOISE[:, :, None]
    mask = np.array([[[True], [False]], [[False], [True]]])
    clamp = constraints.inpaint(mask, x0)
    target = kind.target(SCHEDULE, x0, K, noise)
    seen = []

    def network(x_k, k):
        seen.append(x_k)
        return target + jnp.where(mask, 100.0, 0.5)

    loss = losses.denoising_loss(
        SCHEDULE, network, x0, K, noise, parameterisation=kind, clamp=clamp
    )
    assert loss.item() == pytest.approx(0.25 * 2 / 4)
    noisy = process.forward_noise(SCHEDULE, x0, K, noise)
    np.testing.assert_array_equal(seen[0], jnp.where(mask, x0, noisy))


def test_no_gradient_reaches_a_network_by_clamped_entries():
    mask = np.array([[True, False], [False, True]])

    def loss(out):
        clamp = constraints.inpaint(mask, X0)
        return losses.denoising_loss(
            SCHEDULE, lambda x_k, k: out, X0, K, NOISE, clamp=clamp
        )

    gradient = jax.grad(loss)(jnp.zeros((2, 2)))
    np.testing.assert_allclose(gradient, [[0.0, -2 * 2 / 4], [2 * 1 / 4, 0.0]])


def test_predicting_the_clean_sample():
    loss = losses.denoising_loss(
        SCHEDULE, zero, X0, K, NOISE, parameterisation=process.X0
    )
    assert loss.item() == pytest.approx((1 + 1 + 0.25 + 0) / 4)


def test_the_network_sees_the_noisy_sample():
    seen = []

    def network(x_k, k):
        seen.append((x_k, k))
        return NOISE

    assert losses.denoising_loss(SCHEDULE, network, X0, K, NOISE).item() == 0
    x_k, k = seen[0]
    np.testing.assert_array_equal(k, K)
    np.testing.assert_allclose(
        x_k[0, 1], -(0.804125**0.5) + 2 * (1 - 0.804125) ** 0.5, atol=1e-5
    )
