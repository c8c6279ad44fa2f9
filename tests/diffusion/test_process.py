"""The forward process and the conversions among predictions."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import process, schedules

SCHEDULE = schedules.make_schedule("vp", 5)
SHAPE = (64, 3)


@pytest.fixture
def sample():
    keys = jax.random.split(jax.random.key(0), 3)
    x0 = jax.random.uniform(keys[0], SHAPE, minval=-1, maxval=1)
    noise = jax.random.normal(keys[1], SHAPE)
    k = jax.random.randint(keys[2], SHAPE[:1], 0, 5)
    return x0, k, noise, process.forward_noise(SCHEDULE, x0, k, noise)


def test_forward_noise_by_hand():
    x = process.forward_noise(
        SCHEDULE, jnp.array([[2.0]]), jnp.array([1]), jnp.array([[-1.0]])
    )
    # abar_1 = 0.435178: 2 sqrt(0.435178) - sqrt(0.564822)
    assert x.item() == pytest.approx(2 * 0.659680 - 0.751546, abs=1e-5)


def test_forward_noise_has_the_moments_of_its_law():
    x0 = jnp.full((200_000, 1), 0.5)
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    x = process.forward_noise(SCHEDULE, x0, jnp.asarray(2), noise)
    assert x.mean().item() == pytest.approx(0.5 * 0.158500**0.5, abs=0.01)
    assert x.var().item() == pytest.approx(1 - 0.158500, abs=0.01)


@pytest.mark.parametrize("name", ["EPSILON", "X0", "V"])
def test_a_perfect_prediction_gives_the_clean_sample_back(name, sample):
    x0, k, noise, x_k = sample
    kind = getattr(process, name)
    prediction = kind.target(SCHEDULE, x0, k, noise)
    np.testing.assert_allclose(kind.to_x0(SCHEDULE, x_k, k, prediction), x0, atol=2e-5)


FROM_X0 = {
    "epsilon": (process.epsilon_from_x0, process.x0_from_epsilon),
    "v": (process.v_from_x0, process.x0_from_v),
}


@pytest.mark.parametrize("pair", list(itertools.product(FROM_X0, FROM_X0)))
def test_conversions_cycle(pair, sample):
    x0, k, _, x_k = sample
    there, back = FROM_X0[pair[0]]
    again, home = FROM_X0[pair[1]]
    first = back(SCHEDULE, x_k, k, there(SCHEDULE, x_k, k, x0))
    np.testing.assert_allclose(
        home(SCHEDULE, x_k, k, again(SCHEDULE, x_k, k, first)), x0, atol=5e-5
    )


def test_score_is_the_gradient_of_the_log_density(sample):
    x0, k, noise, x_k = sample

    def log_density(x):
        mean = process.at(SCHEDULE.signal, k, x0) * x0
        scale = process.at(SCHEDULE.noise, k, x0)
        return -0.5 * jnp.sum(jnp.square((x - mean) / scale))

    np.testing.assert_allclose(
        process.score_from_epsilon(SCHEDULE, k, noise),
        jax.grad(log_density)(x_k),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_scalar_step_equals_a_vector_of_equal_steps(sample):
    x0, _, noise, _ = sample
    one = process.forward_noise(SCHEDULE, x0, jnp.asarray(3), noise)
    many = process.forward_noise(SCHEDULE, x0, jnp.full(SHAPE[:1], 3), noise)
    np.testing.assert_array_equal(one, many)
