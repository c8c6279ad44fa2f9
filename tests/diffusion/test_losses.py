"""The denoising loss, by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import losses, process, schedules

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
    loss = losses.denoising_loss(
        SCHEDULE, zero, X0, K, NOISE, error=losses.absolute_error
    )
    assert loss.item() == pytest.approx((0 + 2 + 1 + 1) / 4)


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
