"""Reinforcement-learning mathematics, with numbers computed by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.rl import improvement, targets
from jdql.types import Transition

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


def test_the_lower_confidence_bound_is_the_mean_less_standard_deviations():
    q = jnp.array([[1.0, 4.0], [3.0, 4.0], [5.0, 4.0]])
    deviation = (8 / 3) ** 0.5  # of 1, 3, 5, with divisor 3
    for rho in (0.0, 1.5):
        bound = targets.lower_confidence_bound(q, rho)
        np.testing.assert_allclose(bound, [3 - rho * deviation, 4.0], rtol=1e-6)


def test_critic_loss_adds_the_heads_means():
    loss = targets.critic_loss(Q, jnp.array([0.0, 2.0]))
    assert loss.item() == pytest.approx((1 + 4) / 2 + (4 + 1) / 2)
    mean = targets.critic_loss(Q, jnp.array([0.0, 2.0]), jnp.mean)
    assert mean.item() == pytest.approx(loss.item() / 2)


def test_no_gradient_passes_through_a_target():
    batch = Transition(
        observation=jnp.zeros((2, 1)),
        action=jnp.zeros((2, 1)),
        reward=jnp.array([1.0, -1.0]),
        mask=jnp.array([1.0, 0.0]),
        next_observation=jnp.zeros((2, 1)),
    )
    # Targets: 1 + 0.5 * 8 = 5 and -1.
    loss, metrics = targets.td_loss(Q, batch, jnp.array([8.0, 8.0]), 0.5)
    assert loss.item() == pytest.approx((16 + 25) / 2 + (9 + 16) / 2)
    assert metrics["q_mean"].item() == pytest.approx(2.5)
    slope = jax.grad(lambda v: targets.td_loss(Q, batch, v, 0.5)[0])(jnp.ones(2))
    np.testing.assert_array_equal(slope, 0)


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


@pytest.mark.parametrize(
    ("eta", "excess", "expected"),
    [
        (1.0, 0.5, 1.05),
        (1.0, -0.5, 0.95),
        (1.0, 7.0, 1.1),
        (1.96, 7.0, 2.0),
        (0.01, -7.0, 0.001),
    ],
)
def test_a_multiplier_climbs_while_more_is_lost_than_allowed(eta, excess, expected):
    new = improvement.dual_ascent(jnp.array(eta), 0.1, jnp.array(excess), (0.001, 2.0))
    assert new.item() == pytest.approx(expected, rel=1e-6)
