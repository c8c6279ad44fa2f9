"""Best-of-N flow against its definition."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import bfn
from jdql.networks.mlp import VelocityNetwork, gelu_critic
from tests.agents import toys
from tests.agents.programs import once
from tests.agents.toys import SPEC

GAMMA, FLOW_STEPS, N = 0.9, 3, 5
SMALL = dataclasses.replace(
    bfn.Config().tiny(),
    discount=GAMMA,
    batch_size=8,
    flow_steps=FLOW_STEPS,
    candidates=N,
)
CRITIC = gelu_critic(SMALL.hidden)
SETTINGS = [{"chunk": 1, "q_agg": "mean"}, {"chunk": 3, "q_agg": "min"}]


@functools.cache
def agent_of(**settings):
    return bfn.make(dataclasses.replace(SMALL, **settings), SPEC)


@functools.cache
def one_update(agent):
    """A state whose target would choose otherwise, a batch, draws and the update."""

    @once
    def step(state, key):
        batch, draws = agent.sample_batch(key, toys.dataset()), agent.draw(key)
        return batch, draws, *agent.update_step(state, batch, draws)

    state = toys.initial(agent)
    return state, *step(state, jax.random.key(2))


def candidates(actor, observation, noise):
    """The N chunks of one observation."""
    seen = jnp.broadcast_to(observation, (len(noise), 3))
    network = VelocityNetwork(noise.shape[-1], SMALL.hidden)
    velocity = functools.partial(network.apply, actor)
    return seen, toys.along_the_flow(velocity, noise, seen, FLOW_STEPS)


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_critic_chooses_and_the_target_critic_values(settings):
    """Both by the same aggregate."""
    state, batch, draws, _, metrics = one_update(agent_of(**settings))
    combine = {"mean": np.mean, "min": np.min}[settings["q_agg"]]
    row = toys.chunk_row(batch, GAMMA)

    @once
    @functools.partial(jax.vmap, out_axes=1)
    def values(observation, noise):
        seen, actions = candidates(state.actor.params, observation, noise)
        networks = (state.critic.params, state.critic.average)
        return jnp.stack([CRITIC.apply(params, seen, actions) for params in networks])

    both = np.asarray(values(batch.next_observation, draws.next_noise))
    chosen, valued = combine(both, axis=2)  # [B, N] each
    best = chosen.argmax(axis=1)
    assert np.any(best != valued.argmax(axis=1))
    y = row["return"] + row["factor"] * valued[np.arange(8), best]
    q = np.asarray(CRITIC.apply(state.critic.params, row["seen"], row["action"]))
    expected = np.mean(row["weight"] * (q - y) ** 2)
    assert float(metrics["critic_loss"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_actor_clones_by_flow_matching_what_is_valid(settings):
    state, batch, draws, _, metrics = one_update(agent_of(**settings))
    row, t = toys.chunk_row(batch, GAMMA), draws.time[:, None]
    x_t = (1 - t) * draws.noise + t * row["action"]
    network = VelocityNetwork(x_t.shape[1], SMALL.hidden)
    velocity = network.apply(state.actor.params, x_t, draws.time, row["seen"])
    error = (velocity - (row["action"] - draws.noise)) * row["mask"]
    bc_loss = float(jnp.mean(error**2))
    assert float(metrics["bc_loss"]) == pytest.approx(bc_loss, rel=1e-4)


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_target_follows_the_critic_of_before_the_update(settings):
    state, *_, new, _ = one_update(agent_of(**settings))
    expected = toys.between(state.critic.average, state.critic.params, SMALL.tau)
    toys.assert_near(new.critic.average, expected)
    assert int(new.step) == 1


def test_a_plan_is_the_chunk_of_the_best_candidate_in_order():
    agent = agent_of(**SETTINGS[1])
    learned, key = agent.learned(toys.initial(agent)), jax.random.key(5)
    observation = jnp.array([0.3, -1.0, 0.5])

    @once
    def both():
        noise = jax.random.normal(jax.random.split(key)[0], (N, 6))
        seen, actions = candidates(learned.actor, observation, noise)
        q = CRITIC.apply(learned.critic, seen, actions).min(axis=0)
        return toys.act(agent, learned, observation, key), actions, q

    plan, actions, q = both()
    expected = np.asarray(actions)[np.argmax(q)].reshape(3, 2)
    np.testing.assert_allclose(plan, expected, rtol=1e-4, atol=1e-5)


def test_the_critic_that_chooses_is_the_online_one():
    state = toys.initial(agent_of(**SETTINGS[1]))
    assert agent_of(**SETTINGS[1]).learned(state).critic is state.critic.params


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"flow_steps": 0}, "flow_steps must be at least 1"),
        ({"q_agg": "median"}, "q_agg must be one of"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        bfn.make(bfn.Config(**settings), SPEC)
