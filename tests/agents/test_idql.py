"""IDQL: its sampler, its critics and its choice against hand-written numbers."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import idql
from jdql.diffusion import reverse, schedules
from jdql.types import DataSpec, Transition

SPEC = DataSpec(3, 2, (-1.0, -1.0), (1.0, 1.0))
SMALL = idql.Config(
    hidden=(8,), width=8, blocks=1, step_dim=4, batch_size=4, candidates=5
)


@functools.cache
def agent(**changes):
    return idql.make(dataclasses.replace(SMALL, **changes), SPEC)


@functools.cache
def initial():
    return jax.jit(agent().init)(jax.random.key(0))


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in ((4, 3), (4, 2), (4,), (4, 3))]
    observation, action, reward, following = (
        jnp.asarray(x, jnp.float32) for x in arrays
    )
    discount = jnp.array([1.0, 0.0, 1.0, 1.0])
    return Transition(observation, action, reward, discount, following)


@functools.cache
def updated():
    draws = agent().draw(jax.random.key(1))
    return jax.jit(agent().update_step)(initial(), batch(), draws)


def relu_net(params, x, member=()):
    hidden, last = params["Dense_0"], params["Dense_1"]
    x = x @ np.asarray(hidden["kernel"])[member] + np.asarray(hidden["bias"])[member]
    x = np.maximum(x, 0)
    return (x @ np.asarray(last["kernel"])[member] + np.asarray(last["bias"])[member])[
        :, 0
    ]


def values(params, observation):
    return relu_net(params["params"], np.asarray(observation))


def critics(params, observation, action):
    x = np.concatenate([observation, action], axis=-1)
    return np.stack([relu_net(params["params"]["q"], x, i) for i in range(2)])


def network(x_k, k):
    """Something nonlinear in place of a noise network; numpy and JAX."""
    return 1.7 * x_k - 0.3 * x_k**2 + 0.1 * k


def test_the_sampler_is_the_authors():
    """Their chain, in their form: noise sqrt(beta_k), each x_k clipped."""
    schedule = schedules.make_schedule("vp", 5)
    sampler = idql.build_sampler(SMALL, SPEC, schedule)
    draws = reverse.draw_chain(jax.random.key(3), sampler.draws, (50, 2))
    found = sampler.sample(network, draws)

    alpha, abar = 1 - schedule.beta, schedule.signal**2
    x, clipped = np.asarray(draws.start, np.float64), 0
    for i, k in enumerate(range(4, -1, -1)):
        x = (x - (1 - alpha[k]) / np.sqrt(1 - abar[k]) * network(x, k)) / alpha[
            k
        ] ** 0.5
        if k > 0:
            x = x + np.sqrt(schedule.beta[k]) * np.asarray(draws.noises[i])
        clipped += (np.abs(x) > 1).sum() if k > 0 else 0
        x = np.clip(x, -1, 1)
    assert clipped > 10  # what is tested does happen
    np.testing.assert_allclose(found, x, atol=2e-5)


def test_other_samplers_clip_the_estimate():
    schedule = schedules.make_schedule("vp", 5)
    config = dataclasses.replace(SMALL, sampler="dpmpp_2m", sample_steps=3)
    sampler = idql.build_sampler(config, SPEC, schedule)
    draws = reverse.draw_chain(jax.random.key(3), sampler.draws, (50, 2))
    assert jnp.abs(sampler.sample(network, draws)).max() <= 1


def test_losses_of_an_update_are_those_of_the_paper():
    state, data = initial(), jax.tree.map(np.asarray, batch())
    new, metrics = updated()
    q = critics(state.critic_target, data.observation, data.action)
    error = q.min(axis=0) - values(state.value, data.observation)
    weight = np.where(error < 0, 0.3, 0.7)
    assert metrics["value_loss"].item() == pytest.approx(
        (weight * error**2).mean(), rel=1e-4
    )
    # The critics regress to the value that this update has made.
    following = values(new.value, data.next_observation)
    target = data.reward + 0.99 * data.discount * following
    q = critics(state.critic, data.observation, data.action)
    expected = ((q - target) ** 2).mean()
    assert metrics["critic_loss"].item() == pytest.approx(expected, rel=1e-4)


def test_the_cloning_loss_sums_over_dimensions_and_drops_out():
    state, draws = initial(), agent().draw(jax.random.key(1))
    assert draws.dropout.shape == (1, 4, 8)
    data, signal = batch(), schedules.make_schedule("vp", 5).signal[draws.k][:, None]
    x_k = signal * data.action + np.sqrt(1 - signal**2) * draws.noise
    actor = idql.ResidualNoiseNetwork(2, 8, 1, 4)
    predicted = actor.apply(state.actor, x_k, draws.k, data.observation)
    expected = ((predicted - draws.noise) ** 2).sum(axis=1).mean().item()

    kept = draws._replace(dropout=jnp.ones_like(draws.dropout))
    none = draws._replace(dropout=jnp.zeros_like(draws.dropout))
    step = jax.jit(agent().update_step)
    losses = [step(state, data, d)[1]["bc_loss"].item() for d in (kept, none)]
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert losses[1] != pytest.approx(expected, rel=1e-2)


def test_the_averages_move_at_their_rates():
    state, (new, _) = initial(), updated()
    for rate, target, online, old in (
        (0.001, new.actor_target, new.actor, state.actor_target),
        (0.005, new.critic_target, new.critic, state.critic_target),
    ):
        moved = jax.tree.map(lambda t, o: t - o, target, old)
        whole = jax.tree.map(lambda t, o: t - o, online, old)
        for m, w in zip(jax.tree.leaves(moved), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(m, rate * w, rtol=1e-2, atol=1e-7)


def test_acting_takes_the_best_candidate_of_the_averaged_actor():
    """Of the same candidates, one is chosen by the smaller of two target critics."""
    policy = agent().policy(initial())
    observation, key = jnp.array([0.3, -1.0, 2.0]), jax.random.key(4)
    action, _ = jax.jit(agent().act)(policy, (), observation, key)

    chain_key, _ = jax.random.split(key)
    actor = idql.ResidualNoiseNetwork(2, 8, 1, 4)
    repeated = jnp.broadcast_to(observation, (5, 3))
    sampler = idql.build_sampler(SMALL, SPEC, schedules.make_schedule("vp", 5))
    candidates = jax.jit(
        lambda draws: sampler.sample(
            lambda x, k: actor.apply(policy.actor, x, k, repeated), draws
        )
    )(reverse.draw_chain(chain_key, 5, (5, 2)))
    q = critics(policy.critic, np.asarray(repeated), np.asarray(candidates))
    np.testing.assert_allclose(action, candidates[q.min(axis=0).argmax()], atol=1e-5)
    assert len(np.unique(candidates, axis=0)) > 2  # untrained, some are clipped alike


def test_the_implicit_policy_takes_what_is_no_worse_than_v():
    """At tau = 1 the others weigh nothing; V is here the poorest of the best."""
    policy, observation = agent().policy(initial()), jnp.array([0.3, -1.0, 2.0])
    keys = jax.random.split(jax.random.key(4), 64)

    def q_of(agent, policy):
        act = jax.vmap(lambda key: agent.act(policy, (), observation, key)[0])
        actions = np.asarray(jax.jit(act)(keys))
        repeated = np.broadcast_to(observation, (64, 3))
        return critics(policy.critic, repeated, actions).min(axis=0)

    best = q_of(agent(), policy)
    constant = jax.tree.map(jnp.zeros_like, policy.value)
    constant["params"]["Dense_1"]["bias"] += best.min() - 1e-4
    drawn = q_of(
        agent(selection="implicit", expectile=1.0), policy._replace(value=constant)
    )
    assert drawn.min() >= best.min() - 1e-3
    assert (drawn < best - 1e-3).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "argmax"}, "selection must be one of"),
        ({"decay_steps": 0}, "decay_steps must be at least 1"),
        ({"sampler": "ode"}, "sampler must be one of"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        agent(**changes)
