"""Reinforcement-learning mathematics, with numbers computed by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.rl import improvement, resampling, targets

Q = jnp.array([[1.0, 4.0], [2.0, 3.0]])


def test_td_target_stops_at_terminals_only():
    target = targets.td_target(
        jnp.array([1.0, 1.0]), jnp.array([1.0, 0.0]), jnp.array([10.0, 10.0]), 0.9
    )
    np.testing.assert_allclose(target, [10.0, 1.0])


def test_clipped_double_q_takes_the_smaller_head():
    np.testing.assert_array_equal(targets.clipped_double_q(Q), [1.0, 3.0])


def test_max_q_backup_maximises_each_head_before_the_minimum():
    # Heads prefer different actions: max then min is 5; min then max would be 2.
    q = jnp.array([[[5.0, 1.0]], [[2.0, 6.0]]])
    np.testing.assert_array_equal(targets.max_q_backup(q), [5.0])


def test_critic_loss_adds_the_heads_means():
    loss = targets.critic_loss(Q, jnp.array([0.0, 2.0]))
    assert loss.item() == pytest.approx((1 + 4) / 2 + (4 + 1) / 2)


@pytest.mark.parametrize(("first", "value"), [(True, -2.5 / 2.5), (False, -2.5 / 2.5)])
def test_q_loss_of_equal_means(first, value):
    loss = improvement.normalised_q_loss(Q, jnp.asarray(first))
    assert loss.item() == pytest.approx(value)


def test_q_loss_is_normalised_by_the_other_head():
    q = jnp.array([[1.0, 3.0], [-4.0, 6.0]])
    first = improvement.normalised_q_loss(q, jnp.asarray(True))
    second = improvement.normalised_q_loss(q, jnp.asarray(False))
    assert first.item() == pytest.approx(-2.0 / 5.0)
    assert second.item() == pytest.approx(-1.0 / 2.0)


def test_q_loss_gradient_flows_through_the_raised_head_only():
    q = jnp.array([[1.0, 3.0], [-4.0, 6.0]])
    gradient = jax.grad(improvement.normalised_q_loss)(q, jnp.asarray(True))
    np.testing.assert_allclose(gradient, [[-0.1, -0.1], [0.0, 0.0]], rtol=1e-6)


def test_choices_follow_the_softmax():
    q = jnp.log(jnp.array([1.0, 2.0, 5.0]))
    keys = jax.random.split(jax.random.key(0), 20_000)
    picks = jax.vmap(lambda key: resampling.choose(key, q))(keys)
    shares = np.bincount(picks, minlength=3) / len(keys)
    np.testing.assert_allclose(shares, [1 / 8, 2 / 8, 5 / 8], atol=0.015)
    np.testing.assert_allclose(
        resampling.choice_probabilities(q, 0.5), [1 / 30, 4 / 30, 25 / 30], rtol=1e-5
    )


def test_temperature_zero_takes_the_best():
    q = jnp.array([0.1, 0.3, 0.2])
    assert resampling.choose(jax.random.key(0), q, 0.0).item() == 1
