"""CFGRL: labels, losses by hand, and the shares of two arms as guidance grows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdql.agents import cfgrl
from jdql.diffusion import process, reverse, schedules
from jdql.runtime.members import member_config
from jdql.types import DataSpec, Transition

SPEC = DataSpec(2, 2, (-1.0, -1.0), (1.0, 1.0))
SMALL = cfgrl.Config(
    hidden=(8,), step_dim=4, batch_size=6, diffusion_steps=3, dropout=0.4, expectile=0.8
)


def test_labels_are_good_from_the_threshold_on_unless_dropped():
    advantage = jnp.array([-1.0, 0.0, 2.0, 2.0])
    dropped = jnp.array([False, False, False, True])
    D, B, G = cfgrl.DROPPED, cfgrl.BAD, cfgrl.GOOD
    assert cfgrl.labels(advantage, 0.0, dropped).tolist() == [B, G, G, D]
    assert cfgrl.labels(advantage, 1.0, dropped).tolist() == [B, B, G, D]


def test_each_label_is_told_apart():
    observation = jnp.array([[0.5, -1.0], [0.5, -1.0], [0.5, -1.0]])
    inputs = cfgrl.told(observation, jnp.arange(3))
    np.testing.assert_array_equal(inputs[:, :2], observation)
    np.testing.assert_array_equal(inputs[:, 2:], np.eye(3))


def batch() -> Transition:
    keys = jax.random.split(jax.random.key(3), 3)
    return Transition(
        observation=jax.random.normal(keys[0], (6, 2)),
        action=jnp.clip(jax.random.normal(keys[1], (6, 2)), -1, 1),
        reward=jnp.array([1.0, -2.0, 0.5, 3.0, 0.0, -1.0]),
        discount=jnp.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0]),
        next_observation=jax.random.normal(keys[2], (6, 2)),
    )


@functools.cache
def one_update():
    """A state whose target critic is not its critic, and its update."""
    agent = cfgrl.make(SMALL, SPEC)
    state, other = (jax.jit(agent.init)(jax.random.key(i)) for i in range(2))
    state = state._replace(critic_target=other.critic)
    draws = agent.draw(jax.random.key(5))
    return state, draws, *jax.jit(agent.update_step)(state, batch(), draws)


def test_the_losses_of_an_update_by_hand():
    state, draws, _, metrics = one_update()
    parts, b = cfgrl.build(SMALL, SPEC), batch()

    def q_of(params):
        return np.array(parts.critic.apply(params, b.observation, b.action))

    def value_of(observation):
        return np.array(parts.value.apply(state.value, observation))[:, 0]

    q, v = q_of(state.critic), value_of(b.observation)
    error = q_of(state.critic_target).min(0) - v
    value_loss = np.mean(np.where(error >= 0, 0.8, 0.2) * error**2)
    assert metrics["value_loss"].item() == pytest.approx(value_loss, rel=1e-4)

    target = np.array(b.reward + 0.99 * b.discount * value_of(b.next_observation))
    squares = np.mean((q[0] - target) ** 2) + np.mean((q[1] - target) ** 2)
    assert metrics["critic_loss"].item() == pytest.approx(squares, rel=1e-4)

    good = q.min(0) >= v
    assert 0 < good.sum() < 6
    assert metrics["good"].item() == pytest.approx(good.mean())
    dropped = np.array(draws.coin) < 0.4
    assert 0 < dropped.sum() < 6
    label = np.where(dropped, cfgrl.DROPPED, np.where(good, cfgrl.GOOD, cfgrl.BAD))
    inputs = jnp.concatenate([b.observation, jnp.eye(3)[label]], axis=1)
    schedule = schedules.make_schedule("vp", 3)
    noisy = process.forward_noise(schedule, b.action, draws.k, draws.noise)
    predicted = parts.actor.apply(state.actor, noisy, draws.k, inputs)
    bc_loss = np.mean((np.array(predicted) - np.array(draws.noise)) ** 2)
    assert metrics["bc_loss"].item() == pytest.approx(bc_loss, rel=1e-4)


def test_the_target_follows_the_critic_of_before_the_update():
    state, _, new, _ = one_update()
    expected = jax.tree.map(
        lambda t, c: 0.995 * t + 0.005 * c, state.critic_target, state.critic
    )
    for got, want in zip(
        jax.tree.leaves(new.critic_target), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("weight", "label"), [(0.0, "DROPPED"), (1.0, "GOOD")])
def test_weights_zero_and_one_act_by_one_policy(weight, label):
    state, *_ = one_update()
    parts = cfgrl.build(member_config(SMALL, {"guidance": weight}), SPEC)
    draws = reverse.draw_chain(jax.random.key(7), parts.sampler.draws, (6, 2))
    observation = batch().observation
    inputs = cfgrl.told(observation, jnp.full(6, getattr(cfgrl, label)))

    def predict(x_k, k):
        return parts.actor.apply(state.actor, x_k, k, inputs)

    np.testing.assert_allclose(
        parts.sample_action(state.actor, observation, draws),
        parts.sampler.sample(predict, draws),
        rtol=1e-5,
        atol=1e-6,
    )


# Two arms -----------------------------------------------------------------------------

LINE = DataSpec(1, 1, (-1.0,), (1.0,))
CHANCE = 0.65  # that the arm at +0.6 is called good; 0.35 for the one at -0.6
ARMS = cfgrl.Config(
    hidden=(64, 64), step_dim=8, batch_size=256, diffusion_steps=16, sampler="ddim"
)


def trained_on_two_arms():
    """The actor after 3000 updates with labels that are drawn, not computed."""
    parts, agent = cfgrl.build(ARMS, LINE), cfgrl.make(ARMS, LINE)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 3000))
    observation = jnp.zeros((256, 1))

    def update(carry, key):
        params, opt = carry
        arm_key, spread_key, label_key, draw_key = jax.random.split(key, 4)
        draws = agent.draw(draw_key)
        sign = jax.random.rademacher(arm_key, (256, 1), float)
        action = 0.6 * sign + 0.05 * jax.random.normal(spread_key, (256, 1))
        chance = jnp.where(sign[:, 0] > 0, CHANCE, 1 - CHANCE)
        good = jax.random.uniform(label_key, (256,)) < chance
        label = cfgrl.labels(good - 0.5, 0.0, draws.coin < 0.3)
        gradients = jax.grad(parts.cloning_loss)(
            params, observation, action, label, draws
        )
        updates, opt = optimizer.update(gradients, opt)
        return (optax.apply_updates(params, updates), opt), None

    params = agent.init(jax.random.key(0)).actor
    keys = jax.random.split(jax.random.key(1), 3000)
    run = jax.jit(lambda carry: jax.lax.scan(update, carry, keys)[0])
    return run((params, optimizer.init(params)))[0]


def test_the_share_of_the_better_arm_follows_the_power_of_the_chance():
    """pi_w ~ pi p(good | arm)^w: p^w / (p^w + (1 - p)^w) from equal arms.

    Of the start of a deterministic chain only its quantile counts, so that shares are
    exact to 1/2000 but for the network's error.
    """
    params = trained_on_two_arms()
    levels = (jnp.arange(2000) + 0.5) / 2000
    start = jax.scipy.stats.norm.ppf(levels)[:, None]
    draws = reverse.ChainDraws(start, jnp.zeros((0, 2000, 1)))

    @jax.jit
    @jax.vmap
    def play(weight):
        parts = cfgrl.build(member_config(ARMS, {"guidance": weight}), LINE)
        return parts.sample_action(params, jnp.zeros((2000, 1)), draws)

    weights = np.array([0.0, 1.0, 2.0, 3.0])
    actions = play(jnp.asarray(weights))[..., 0]
    share = np.mean(actions > 0, axis=1)
    predicted = CHANCE**weights / (CHANCE**weights + (1 - CHANCE) ** weights)
    np.testing.assert_allclose(share, predicted, atol=0.05)
    assert np.all(np.diff(share) > 0.05)
    assert np.mean(np.abs(np.abs(actions) - 0.6) < 0.2) > 0.9
