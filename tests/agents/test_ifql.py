"""IFQL: its losses and its choice against hand-written numbers."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import ifql
from jdql.networks.layers import XavierDense
from jdql.networks.mlp import MLP, VelocityNetwork, gelu_critic
from tests.agents import toys
from tests.agents.programs import once
from tests.agents.toys import SPEC

SMALL = dataclasses.replace(
    ifql.Config().tiny(), hidden=(8,), batch_size=8, candidates=5, flow_steps=3
)
CRITIC = gelu_critic((8,))
VALUE = MLP((8,), 1, jax.nn.gelu, XavierDense, norm=True)
VELOCITY = VelocityNetwork(2, (8,))


@functools.cache
def agent():
    return ifql.make(SMALL, SPEC)


@functools.cache
def updated():
    """The state before, draws, the state after, and metrics."""
    draws = once(agent().draw)(jax.random.key(1))
    state = toys.initial(agent())
    return state, draws, *once(agent().update_step)(state, toys.batch(), draws)


def values(params, observation):
    return np.asarray(VALUE.apply(params, observation))[:, 0]


def critics(params, observation, action):
    return np.asarray(CRITIC.apply(params, observation, action))


def test_the_critics_are_those_of_iql_from_one_set_of_parameters():
    (state, _, _, metrics), data = updated(), toys.batch()
    q = critics(state.critic.average, data.observation, data.action).min(axis=0)
    error = q - values(state.value.params, data.observation)
    expected = (np.where(error < 0, 0.1, 0.9) * error**2).mean()
    assert metrics["value_loss"].item() == pytest.approx(expected, rel=1e-4)
    # V of the next observation is the one before the update.
    following = values(state.value.params, data.next_observation)
    target = data.reward + 0.99 * data.mask * following
    q = critics(state.critic.params, data.observation, data.action)
    expected = ((q - target) ** 2).mean(axis=1).sum()
    assert metrics["critic_loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_target_follows_the_critic_of_before_the_update():
    state, _, new, _ = updated()
    expected = toys.between(state.critic.average, state.critic.params, SMALL.tau)
    toys.assert_near(new.critic.average, expected)


def test_the_actor_clones_by_flow_matching():
    (state, draws, _, metrics), data = updated(), toys.batch()
    time = draws.time[:, None]
    x_t = (1 - time) * draws.noise + time * data.action
    predicted = VELOCITY.apply(state.actor.params, x_t, draws.time, data.observation)
    expected = ((predicted - (data.action - draws.noise)) ** 2).mean()
    assert metrics["bc_loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_acting_follows_the_flow_and_takes_the_best_by_the_online_critics():
    state = updated()[0]  # the online critics differ from their targets
    observation, key = jnp.array([0.3, -1.0, 2.0]), jax.random.key(4)

    @once
    def both():
        repeated = jnp.broadcast_to(observation, (5, 3))
        noise = jax.random.normal(jax.random.split(key)[0], (5, 2))
        velocity = functools.partial(VELOCITY.apply, state.actor.params)
        x = toys.along_the_flow(velocity, noise, repeated, 3)
        q = CRITIC.apply(state.critic.params, repeated, x).min(axis=0)
        return toys.act(agent(), agent().learned(state), observation, key), x, q

    action, x, q = both()
    np.testing.assert_allclose(action[0], x[np.argmax(q)], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "argmax"}, "selection must be one of"),
        ({"flow_steps": 0}, "flow_steps must be at least 1"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ifql.make(dataclasses.replace(SMALL, **changes), SPEC)
