"""CFGRL: labels, losses by hand, and the shares of two arms as guidance grows."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdql.agents import cfgrl
from jdql.diffusion import losses, process, reverse, schedules
from jdql.networks.mlp import conditioned
from jdql.runtime.recipe import member_config
from jdql.types import DataSpec
from tests.agents import toys
from tests.agents.programs import once
from tests.agents.toys import SPEC

SMALL = dataclasses.replace(
    cfgrl.Config().tiny(),
    hidden=(8,),
    step_dim=4,
    batch_size=8,
    diffusion_steps=3,
    dropout=0.4,
    expectile=0.8,
)
PARTS = cfgrl.build(SMALL, SPEC)


def test_labels_are_good_from_the_threshold_on_unless_dropped():
    advantage = jnp.array([-1.0, 0.0, 2.0, 2.0])
    dropped = jnp.array([False, False, False, True])
    D, B, G = cfgrl.DROPPED, cfgrl.BAD, cfgrl.GOOD
    assert cfgrl.labels(advantage, 0.0, dropped).tolist() == [B, G, G, D]
    assert cfgrl.labels(advantage, 1.0, dropped).tolist() == [B, B, G, D]


def test_each_label_is_told_apart():
    observation = jnp.array([[0.5, -1.0], [0.5, -1.0], [0.5, -1.0]])
    inputs = cfgrl.labelled(observation, jnp.arange(3))
    np.testing.assert_array_equal(inputs[:, :2], observation)
    np.testing.assert_array_equal(inputs[:, 2:], np.eye(3))


@functools.cache
def one_update():
    """A state whose target critic is not its critic, and its update."""
    agent = cfgrl.make(SMALL, SPEC)
    state, draws = toys.initial(agent), once(agent.draw)(jax.random.key(5))
    return state, draws, *once(agent.update_step)(state, toys.batch(), draws)


def value_of(state, observation):
    return np.array(PARTS.value.apply(state.value.params, observation))[:, 0]


def q_of(params):
    b = toys.batch()
    return np.array(PARTS.critic.apply(params, b.observation, b.action))


def test_the_critics_are_those_of_iql():
    (state, _, _, metrics), b = one_update(), toys.batch()
    error = q_of(state.critic.average).min(0) - value_of(state, b.observation)
    value_loss = np.mean(np.where(error >= 0, 0.8, 0.2) * error**2)
    assert metrics["value_loss"].item() == pytest.approx(value_loss, rel=1e-4)

    following = value_of(state, b.next_observation)
    target = np.array(b.reward + 0.99 * b.mask * following)
    q = q_of(state.critic.params)
    squares = np.mean((q[0] - target) ** 2) + np.mean((q[1] - target) ** 2)
    assert metrics["critic_loss"].item() == pytest.approx(squares, rel=1e-4)


def test_actions_are_cloned_with_their_labels():
    (state, draws, _, metrics), b = one_update(), toys.batch()
    gain = q_of(state.critic.params).min(0) - value_of(state, b.observation)
    good, dropped = gain >= 0, np.array(draws.coin) < 0.4
    assert 0 < good.sum() < 8
    assert 0 < dropped.sum() < 8
    assert metrics["good"].item() == pytest.approx(good.mean())
    assert metrics["advantage"].item() == pytest.approx(gain.mean(), abs=1e-5)
    label = np.where(dropped, cfgrl.DROPPED, np.where(good, cfgrl.GOOD, cfgrl.BAD))
    inputs = jnp.concatenate([b.observation, jnp.eye(3)[label]], axis=1)
    schedule = schedules.make_schedule("vp", 3)
    noisy = process.forward_noise(schedule, b.action, draws.k, draws.noise)
    predicted = PARTS.actor.apply(state.actor.params, noisy, draws.k, inputs)
    bc_loss = np.mean((np.array(predicted) - np.array(draws.noise)) ** 2)
    assert metrics["bc_loss"].item() == pytest.approx(bc_loss, rel=1e-4)


def test_the_target_follows_the_critic_of_before_the_update():
    state, _, new, _ = one_update()
    expected = toys.between(state.critic.average, state.critic.params, SMALL.tau)
    toys.assert_near(new.critic.average, expected)


@pytest.mark.parametrize(("weight", "label"), [(0.0, cfgrl.DROPPED), (1.0, cfgrl.GOOD)])
def test_weights_zero_and_one_act_by_one_policy(weight, label):
    params, observation = one_update()[0].actor.params, toys.batch().observation
    parts = PARTS._replace(config=dataclasses.replace(SMALL, guidance=weight))

    @once
    def both():
        draws = reverse.draw_chain(jax.random.key(7), parts.sampler.draws, (8, 2))
        inputs = cfgrl.labelled(observation, jnp.full(8, label))
        alone = conditioned(parts.actor, params, inputs)
        guided = cfgrl.sample_action(parts, params, observation, draws)
        return guided, parts.sampler.sample(alone, draws)

    np.testing.assert_allclose(*both(), rtol=1e-5, atol=1e-6)


# Two arms -----------------------------------------------------------------------------

LINE = DataSpec(1, 1, (-1.0,), (1.0,))
CHANCE = 0.65  # that the arm at +0.6 is called good; 0.35 for the one at -0.6
ARMS = dataclasses.replace(
    cfgrl.Config(),
    hidden=(64, 64),
    step_dim=8,
    batch_size=256,
    diffusion_steps=16,
    sampler="ddim",
)
UPDATES = 3000


def cloning_loss(params, parts, action, label, draws):
    inputs = cfgrl.labelled(jnp.zeros((len(action), 1)), label)
    predict = conditioned(parts.actor, params, inputs)
    schedule, k, noise = parts.schedule, draws.k, draws.noise
    return losses.denoising_loss(schedule, predict, action, k, noise)


def trained_on_two_arms():
    """The actor after updates with labels that are drawn, not computed."""
    parts, agent = cfgrl.build(ARMS, LINE), cfgrl.make(ARMS, LINE)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, UPDATES))

    def update(carry, key):
        params, opt = carry
        arm_key, spread_key, label_key, draw_key = jax.random.split(key, 4)
        draws = agent.draw(draw_key)
        sign = jax.random.rademacher(arm_key, (256, 1), float)
        action = 0.6 * sign + 0.05 * jax.random.normal(spread_key, (256, 1))
        chance = jnp.where(sign[:, 0] > 0, CHANCE, 1 - CHANCE)
        good = jax.random.uniform(label_key, (256,)) < chance
        label = cfgrl.labels(good - 0.5, 0.0, draws.coin < 0.3)
        gradients = jax.grad(cloning_loss)(params, parts, action, label, draws)
        updates, opt = optimizer.update(gradients, opt)
        return (optax.apply_updates(params, updates), opt), None

    @jax.jit
    def run(key):
        init_key, train_key = jax.random.split(key)
        params = agent.init(init_key).actor.params
        keys = jax.random.split(train_key, UPDATES)
        return jax.lax.scan(update, (params, optimizer.init(params)), keys)[0][0]

    return run(jax.random.key(0))


def test_the_share_of_the_better_arm_follows_the_power_of_the_chance():
    """pi_w ~ pi p(good | arm)^w: p^w / (p^w + (1 - p)^w) from equal arms.

    Of the start of a deterministic chain only its quantile counts, so that shares are
    exact to 1/2000 but for the network's error.
    """
    params = trained_on_two_arms()
    levels = (jnp.arange(2000) + 0.5) / 2000
    start = jax.scipy.stats.norm.ppf(levels)[:, None]
    draws, parts = (
        reverse.ChainDraws(start, jnp.zeros((0, 2000, 1))),
        cfgrl.build(ARMS, LINE),
    )

    @jax.jit
    @jax.vmap
    def play(weight):
        guided = parts._replace(config=member_config(ARMS, {"guidance": weight}))
        return cfgrl.sample_action(guided, params, jnp.zeros((2000, 1)), draws)

    weights = np.array([0.0, 1.0, 2.0, 3.0])
    actions = play(jnp.asarray(weights))[..., 0]
    share = np.mean(actions > 0, axis=1)
    predicted = CHANCE**weights / (CHANCE**weights + (1 - CHANCE) ** weights)
    np.testing.assert_allclose(share, predicted, atol=0.05)
    assert np.all(np.diff(share) > 0.05)
    assert np.mean(np.abs(np.abs(actions) - 0.6) < 0.2) > 0.9
