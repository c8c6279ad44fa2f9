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
from jdql.networks.resnet import ResidualNoiseNetwork
from jdql.types import DataSpec
from tests.agents import toys
from tests.agents.programs import once

SPEC = DataSpec(3, 2, (-1.0, -1.0), (1.0, 1.0))
SMALL = dataclasses.replace(
    idql.Config().tiny(),
    hidden=(8,),
    width=8,
    step_dim=4,
    batch_size=8,
    candidates=5,
    diffusion_steps=5,
)
ACTOR = ResidualNoiseNetwork(2, 8, 1, 4)
SCHEDULE = schedules.make_schedule("vp", 5)


@functools.cache
def agent(**changes):
    return idql.make(dataclasses.replace(SMALL, **changes), SPEC)


@functools.cache
def draws():
    return once(agent().draw)(jax.random.key(1))


@functools.cache
def update():
    return once(agent().update_step)


@functools.cache
def updated():
    """The state before, the one after, and metrics."""
    state = toys.initial(agent())
    return state, *update()(state, toys.batch(), draws())


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
    sampler = idql.clipping_sampler(SMALL, SPEC, SCHEDULE)
    drawn = reverse.draw_chain(jax.random.key(3), sampler.draws, (50, 2))
    found = once(functools.partial(sampler.sample, network))(drawn)

    alpha, abar = 1 - SCHEDULE.beta, SCHEDULE.signal**2
    x, clipped = np.asarray(drawn.start, np.float64), 0
    for i, k in enumerate(range(4, -1, -1)):
        x = x - (1 - alpha[k]) / np.sqrt(1 - abar[k]) * network(x, k)
        x = x / alpha[k] ** 0.5
        if k > 0:
            x = x + np.sqrt(SCHEDULE.beta[k]) * np.asarray(drawn.noises[i])
        clipped += (np.abs(x) > 1).sum() if k > 0 else 0
        x = np.clip(x, -1, 1)
    assert clipped > 10  # what is tested does happen
    np.testing.assert_allclose(found, x, atol=2e-5)


def test_other_samplers_clip_the_estimate():
    config = dataclasses.replace(SMALL, sampler="dpmpp_2m", sample_steps=3)
    sampler = idql.clipping_sampler(config, SPEC, SCHEDULE)
    drawn = reverse.draw_chain(jax.random.key(3), sampler.draws, (50, 2))
    sample = once(functools.partial(sampler.sample, network))
    assert jnp.abs(sample(drawn)).max() <= 1


def test_losses_of_an_update_are_those_of_the_paper():
    (state, new, metrics), data = updated(), jax.tree.map(np.asarray, toys.batch())
    q = critics(state.critic.average, data.observation, data.action)
    error = q.min(axis=0) - values(state.value.params, data.observation)
    expected = (np.where(error < 0, 0.3, 0.7) * error**2).mean()
    assert metrics["value_loss"].item() == pytest.approx(expected, rel=1e-4)
    # The critics regress to the value that this update has made.
    following = values(new.value.params, data.next_observation)
    target = data.reward + 0.99 * data.mask * following
    q = critics(state.critic.params, data.observation, data.action)
    expected = ((q - target) ** 2).mean()
    assert metrics["critic_loss"].item() == pytest.approx(expected, rel=1e-4)


def test_the_cloning_loss_sums_over_dimensions_and_drops_out():
    state, data = toys.initial(agent()), toys.batch()
    assert draws().dropout.shape == (1, 8, 8)
    k, noise = draws().k, draws().noise
    signal = SCHEDULE.signal[k][:, None].astype(np.float32)
    x_k = signal * data.action + np.sqrt(1 - signal**2) * noise
    predicted = once(ACTOR.apply)(state.actor.params, x_k, k, data.observation)
    expected = ((predicted - noise) ** 2).sum(axis=1).mean().item()

    kept = draws()._replace(dropout=jnp.ones((1, 8, 8)))
    none = draws()._replace(dropout=jnp.zeros((1, 8, 8)))
    losses = [update()(state, data, d)[1]["bc_loss"].item() for d in (kept, none)]
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert losses[1] != pytest.approx(expected, rel=1e-2)


def test_the_averages_follow_the_new_networks_at_their_rates():
    state, new, _ = updated()
    for rate, old, model in (
        (SMALL.actor_tau, state.actor, new.actor),
        (SMALL.tau, state.critic, new.critic),
    ):
        toys.assert_near(
            model.average, toys.between(old.average, model.params, rate), atol=1e-6
        )
        late = jax.tree.leaves(toys.between(old.average, old.params, rate))
        assert (
            max(
                np.abs(a - b).max()
                for a, b in zip(jax.tree.leaves(model.average), late, strict=True)
            )
            > 5e-6
        )


def test_acting_takes_the_best_candidate_of_the_averaged_actor():
    """Of the same candidates, one is chosen by the smaller of two target critics."""
    state = toys.initial(agent())
    observation, key = jnp.array([0.3, -1.0, 2.0]), jax.random.key(4)
    repeated = jnp.broadcast_to(observation, (5, 3))
    sampler = idql.clipping_sampler(SMALL, SPEC, SCHEDULE)

    @once
    def both():
        drawn = reverse.draw_chain(jax.random.split(key)[0], 5, (5, 2))

        def predict(x, k):
            return ACTOR.apply(state.actor.average, x, k, repeated)

        action = toys.act(agent(), agent().learned(state), observation, key)
        return action, sampler.sample(predict, drawn)

    action, candidates = both()
    q = critics(state.critic.average, np.asarray(repeated), np.asarray(candidates))
    best = candidates[q.min(axis=0).argmax()]
    np.testing.assert_allclose(action[0], best, atol=1e-5)
    assert len(np.unique(candidates, axis=0)) > 2  # untrained, some are clipped alike


def test_the_implicit_policy_takes_what_is_no_worse_than_v():
    """At tau = 1 the others weigh nothing; V is here the poorest of the best."""
    learned = agent().learned(toys.initial(agent()))
    observation = jnp.array([0.3, -1.0, 2.0])
    keys = jax.random.split(jax.random.key(4), 64)

    def q_of(agent, learned):
        play = jax.vmap(lambda key: toys.act(agent, learned, observation, key)[0])
        actions = np.asarray(once(play)(keys))
        repeated = np.broadcast_to(observation, (64, 3))
        return critics(learned.critic, repeated, actions).min(axis=0)

    best = q_of(agent(), learned)
    constant = jax.tree.map(jnp.zeros_like, learned.value)
    constant["params"]["Dense_1"]["bias"] += best.min() - 1e-4
    implicit = agent(selection="implicit", expectile=1.0)
    drawn = q_of(implicit, learned._replace(value=constant))
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
