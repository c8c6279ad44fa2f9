"""DAC: its loss, its multiplier and its targets, against numbers found by hand."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import dac
from jdql.diffusion import schedules
from tests.agents import toys
from tests.agents.programs import once
from tests.agents.toys import SPEC

SMALL = dataclasses.replace(
    dac.Config().tiny(),
    hidden=(8,),
    step_dim=4,
    batch_size=4,
    diffusion_steps=3,
    ema_start=1000,
    ema_every=5,
)
FIXED = dataclasses.replace(SMALL, eta=0.1, eta_lr=None, rho=0.5, max_q_backup=True)
LEARNED = dataclasses.replace(SMALL, eta=0.7, bc_threshold=0.4, rho=1.5)


# The loss. ----------------------------------------------------------------------------


def test_the_loss_adds_means_over_batch_and_dimensions():
    noise = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    predicted = jnp.array([[0.0, 1.0], [2.0, 2.0]])
    guidance = jnp.array([[3.0, -1.0], [0.5, 0.0]])
    loss, terms = dac.guided(jnp.array(10.0), noise, predicted, guidance)
    assert terms["bc_loss"].item() == pytest.approx((1 + 1 + 4 + 0) / 4)
    assert terms["guidance_loss"].item() == pytest.approx((0 - 1 + 1 + 0) / 4)
    assert loss.item() == pytest.approx(15.0)


def test_the_loss_is_least_at_the_noise_less_the_guidance():
    """eps_hat = eps - g / (2 eta): up the gradient, as x0_hat falls with eps_hat."""
    noise, guidance = jnp.array([[0.3, -1.2]]), jnp.array([[0.8, -0.4]])
    eta = jnp.array(0.5)
    gradient = jax.grad(lambda e: dac.guided(eta, noise, e, guidance)[0])
    np.testing.assert_allclose(gradient(noise - guidance), 0.0, atol=1e-7)
    assert jnp.all(gradient(noise) * guidance > 0)


def test_noise_regression_meets_its_closed_form():
    """Data N(m, s^2), Q = c a: eps_bc - sigma_k c / (2 eta) at every noise level k.

    The guidance is not damped by the slope of the best denoiser, as the exact tilt's
    would be: the critics judge noisy actions as if they were clean.
    """
    eta, c, m, s = jnp.array(0.5), 0.4, 0.2, 0.3
    schedule = schedules.make_schedule("vp", 5)
    x0 = m + s * jax.random.normal(jax.random.key(0), (40_000, 1))
    noise = jax.random.normal(jax.random.key(1), x0.shape)

    @jax.jit
    def best_line(signal, level):
        noisy = signal * x0 + level * noise

        def loss(line):
            guidance = jnp.full_like(noisy, level * c)
            return dac.guided(eta, noise, line[0] + line[1] * noisy, guidance)[0]

        # The loss is quadratic in the line: one Newton step is its minimum.
        zero = jnp.zeros(2)
        return -jnp.linalg.solve(jax.hessian(loss)(zero), jax.grad(loss)(zero))

    for a, n in zip(schedule.signal, schedule.noise, strict=True):
        slope = n / (a**2 * s**2 + n**2)
        expected = [-slope * a * m - n * c / (2 * 0.5), slope]
        np.testing.assert_allclose(best_line(a, n), expected, atol=0.02)


# An update. ---------------------------------------------------------------------------


@functools.cache
def agent_of(config):
    return dac.make(config, SPEC)


@functools.cache
def updater(config):
    return once(agent_of(config).update_step)


@functools.cache
def one_update(config):
    """The state before, draws, the state after, and metrics."""
    agent = agent_of(config)
    state, draws = toys.initial(agent), once(agent.draw)(jax.random.key(1))
    return state, draws, *updater(config)(state, toys.batch(4), draws)


@functools.cache
def by_hand(config):
    """The critics' loss, the actor's before and after, and its guidance loss."""
    state, draws, new, _ = one_update(config)
    parts, data = dac.build(config, SPEC), toys.batch(4)
    schedule = schedules.make_schedule("vp", 3)
    repeated = jnp.repeat(data.next_observation, 2, axis=0)

    def q_of(params, action):
        return parts.critic.apply(params, data.observation, action)

    @once
    def outputs(noisy):
        actions = parts.chain.sample(state.actor.average, repeated, draws.target)
        return (
            parts.critic.apply(state.critic.average, repeated, actions),
            q_of(state.critic.params, data.action),
            q_of(new.critic.average, data.action),
            jax.jacrev(lambda a: q_of(new.critic.average, a))(noisy),
            *(
                parts.chain.predict(params, data.observation)(noisy, draws.k)
                for params in (state.actor.params, new.actor.params)
            ),
        )

    a, s = schedule.signal[draws.k][:, None], schedule.noise[draws.k][:, None]
    noisy = jnp.asarray(a * data.action + s * draws.noise, jnp.float32)
    next_q, q, target_q, jacobian, before, after = map(np.asarray, outputs(noisy))
    pairs = next_q.reshape(3, 4, 2)  # the two actions of an observation are adjacent
    pooled = pairs.max(2) if config.max_q_backup else pairs.mean(2)
    value = pooled.mean(0) - config.rho * pooled.std(0)
    target = np.array(data.reward) + 0.99 * np.array(data.mask) * value
    # [M, B, B, A]: no value depends on the action of another row.
    gradient = np.stack([jacobian[:, i, i].mean(0) for i in range(4)])
    guidance, noise = s * gradient / np.abs(target_q).mean(), np.array(draws.noise)
    return {
        "critic_loss": np.mean((q - target) ** 2),
        "bc_loss": np.mean((before - noise) ** 2),
        "after": np.mean((after - noise) ** 2),
        "guidance_loss": np.mean(guidance * before),
    }


@pytest.mark.parametrize("config", [LEARNED, FIXED], ids=["mean", "largest"])
def test_the_critics_regress_on_the_bound_of_sampled_actions(config):
    *_, metrics = one_update(config)
    expected = by_hand(config)["critic_loss"]
    assert metrics["critic_loss"].item() == pytest.approx(expected, rel=2e-4)


def test_the_actor_clones_and_follows_the_new_target_critics():
    *_, metrics = one_update(LEARNED)
    expected = by_hand(LEARNED)
    bc_loss, guidance_loss = expected["bc_loss"], expected["guidance_loss"]
    assert metrics["bc_loss"].item() == pytest.approx(bc_loss, rel=2e-4)
    found = metrics["guidance_loss"].item()
    assert found == pytest.approx(guidance_loss, rel=2e-3, abs=1e-6)
    total = 0.7 * bc_loss + guidance_loss
    assert metrics["actor_loss"].item() == pytest.approx(total, rel=1e-3)


def test_the_multiplier_goes_by_the_loss_of_the_actor_before_its_step():
    _, _, new, metrics = one_update(LEARNED)
    before, after = by_hand(LEARNED)["bc_loss"], by_hand(LEARNED)["after"]
    assert 1e-3 * abs(after - before) > 1e-6  # in units of eta: it would be seen
    expected = 0.7 + 1e-3 * np.clip(before - 0.4, -1, 1)
    assert new.eta.item() == pytest.approx(expected, abs=2e-7)
    assert metrics["eta"].item() == new.eta.item()


def test_a_fixed_multiplier_stays():
    _, _, new, _ = one_update(FIXED)
    assert new.eta.item() == pytest.approx(0.1)


def test_the_target_follows_the_new_critics():
    state, _, new, _ = one_update(LEARNED)
    expected = toys.between(state.critic.average, new.critic.params, SMALL.tau)
    toys.assert_near(new.critic.average, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "moves"), [(1000, False), (1003, False), (1005, True)]
)
def test_the_averaged_actor_moves_after_the_thousandth_update(step, moves):
    """The authors test `step > 1000`, so that 1005 is the first of every fifth."""
    state, draws, _, _ = one_update(LEARNED)
    late = state._replace(step=jnp.array(step, jnp.int32))
    new, _ = updater(LEARNED)(late, toys.batch(4), draws)
    expected = state.actor.average
    if moves:
        expected = toys.between(expected, new.actor.params, 1 - LEARNED.ema_decay)
    toys.assert_near(new.actor.average, expected)


@pytest.mark.parametrize("name", ["critics", "backup_actions"])
def test_impossible_sizes_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        dac.make(dataclasses.replace(SMALL, **{name: 0}), SPEC)
