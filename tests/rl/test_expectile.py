"""Expectile regression, with numbers computed by hand and a closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.rl import expectile
from jdql.types import Transition


def test_values_of_the_data_above_v_weigh_tau():
    weight = expectile.expectile_weight(jnp.array([2.0, 0.0, -1.0]), 0.7)
    np.testing.assert_allclose(weight, [0.7, 0.7, 0.3], rtol=1e-6)


def test_loss_is_asymmetric():
    # (0.9 * 4 + 0.1 * 1) / 2
    loss = expectile.expectile_loss(jnp.array([2.0, -1.0]), 0.9)
    assert loss.item() == pytest.approx(1.85)


def test_one_half_is_half_the_squared_error():
    error = jnp.array([3.0, -1.0, 0.5])
    loss = expectile.expectile_loss(error, 0.5)
    assert loss.item() == pytest.approx((9 + 1 + 0.25) / 6)


def test_gradient_raises_v_where_q_is_above():
    error = jnp.array([2.0, -1.0])
    gradient = jax.grad(expectile.expectile_loss)(error, 0.9)
    np.testing.assert_allclose(gradient, [0.9 * 2, 0.1 * -1], rtol=1e-6)


def test_value_loss_takes_the_smaller_critic():
    target_q = jnp.array([[5.0, 1.0], [3.0, 4.0]])
    # Errors are 3 - 1 = 2 and 1 - 2 = -1.
    loss = expectile.value_loss(target_q, jnp.array([1.0, 2.0]), 0.9)
    assert loss.item() == pytest.approx(1.85)


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9])
def test_v_converges_to_the_expectile_of_two_points(tau):
    """Q is 0, or 1 with probability p: tau p (1 - v) = (1 - tau)(1 - p) v."""
    p = 0.25
    q = jnp.array([1.0, 0.0, 0.0, 0.0])

    def step(v, _):
        gradient = jax.grad(lambda v: expectile.expectile_loss(q - v, tau))(v)
        return v - 0.5 * gradient, None

    v, _ = jax.lax.scan(step, jnp.zeros(()), length=200)
    expected = tau * p / (tau * p + (1 - tau) * (1 - p))
    assert v.item() == pytest.approx(expected, abs=1e-5)


def test_tau_may_be_traced():
    error = jnp.array([2.0, -1.0])
    losses = jax.vmap(lambda tau: expectile.expectile_loss(error, tau))(
        jnp.array([0.5, 0.9])
    )
    np.testing.assert_allclose(losses, [1.25, 1.85], rtol=1e-6)


def implicit_q(over_critics=jnp.sum):
    """Q_m(s, a) = m-th parameter times a, V(s) = parameter times s."""

    def q_of(params, observation, action):
        return params[:, None] * action[:, 0]

    def v_of(params, observation):
        return params * observation[:, 0]

    return expectile.implicit_q(q_of, v_of, 0.9, 0.5, over_critics)


BATCH = Transition(
    observation=jnp.array([[1.0], [2.0]]),
    action=jnp.array([[2.0], [1.0]]),
    reward=jnp.array([1.0, -1.0]),
    mask=jnp.array([1.0, 0.0]),
    next_observation=jnp.array([[4.0], [4.0]]),
)


def test_the_losses_of_implicit_q_learning_by_hand():
    losses, q, v = implicit_q(), jnp.array([1.0, 3.0]), jnp.array(1.0)
    # Smallest Q: 2 and 1; V: 1 and 2; errors 1 and -1.
    loss, _ = losses.value_loss(v, q, BATCH)
    assert loss.item() == pytest.approx((0.9 * 1 + 0.1 * 1) / 2)
    # Targets: 1 + 0.5 * 4 = 3 and, at an end, -1; Q: (2, 1) and (6, 3).
    loss, metrics = losses.critic_loss(q, v, BATCH)
    assert loss.item() == pytest.approx((1 + 4) / 2 + (9 + 16) / 2)
    assert metrics["q_mean"].item() == pytest.approx(3.0)
    assert metrics["v_mean"].item() == pytest.approx(4.0)
    mean, _ = implicit_q(jnp.mean).critic_loss(q, v, BATCH)
    assert mean.item() == pytest.approx(loss.item() / 2)


def test_each_loss_teaches_its_own_network_alone():
    losses, q, v = implicit_q(), jnp.array([1.0, 3.0]), jnp.array(1.0)
    by_v = jax.grad(lambda v: losses.critic_loss(q, v, BATCH)[0])(v)
    assert by_v == 0.0
