"""EDP's approximated action in closed form: data at +-1, and a perfect network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdql.diffusion import approximation, constraints, process, reverse, schedules
from jdql.rl import selection, weights


def two_points(schedule, tilt=0.0):
    """E[x_0 | x_k] for x_0 = +-1 with odds e^(2 tilt), and the noise that implies."""

    def denoise(x, k):
        a, n = process.at(schedule.signal, k, x), process.at(schedule.noise, k, x)
        return jnp.tanh(a * x / n**2 + tilt)

    def predict(x, k):
        return process.epsilon_from_x0(schedule, x, k, denoise(x, k))

    return denoise, predict


def quantiles(count):
    """Standard normal quantiles: a quadrature of equal weights."""
    return stats.norm.ppf((np.arange(count) + 0.5) / count).astype(np.float32)


def estimates(name="vp", steps=100, count=1000):
    """Approximated actions of +1, for all diffusion steps and quantiles of noise."""
    schedule = schedules.make_schedule(name, steps)
    _, predict = two_points(schedule)
    k = jnp.repeat(jnp.arange(steps), count)
    noise = jnp.asarray(np.tile(quantiles(count), steps)[:, None])
    x0 = jnp.ones_like(noise)
    to_bounds = constraints.clip_to(-jnp.ones(1), jnp.ones(1))
    estimate, error = approximation.approximate(
        schedule, predict, x0, k, noise, to_bounds
    )
    return schedule, k, noise, estimate, error


def test_the_approximated_action_is_the_posterior_mean():
    schedule, k, noise, estimate, error = estimates()
    k, noise = np.asarray(k), np.asarray(noise, np.float64)
    signal, std = schedule.signal[k][:, None], schedule.noise[k][:, None]
    x_k = signal + std * noise
    expected = np.tanh(signal * x_k / std**2)
    np.testing.assert_allclose(estimate, expected, atol=2e-4)
    # A perfect network's error is the posterior's spread, in units of noise.
    np.testing.assert_allclose(
        error, ((signal / std) * (expected - 1))[:, 0] ** 2, atol=2e-3
    )


@pytest.mark.parametrize(
    ("name", "steps", "size", "inside"),
    [("vp", 100, 0.517, 0.526), ("scaled_linear", 1000, 0.376, 0.662)],
)
def test_most_approximated_actions_lie_where_there_are_no_data(
    name, steps, size, inside
):
    schedule, *_, estimate, _ = estimates(name, steps, 100_000 // steps)
    estimate = np.abs(np.asarray(estimate))
    assert estimate.mean() == pytest.approx(size, abs=2e-3)
    # |tanh(r^2 + r z)| < 1/2 with r = signal / noise, exactly.
    r, bound = schedule.signal / schedule.noise, np.arctanh(0.5)
    share = stats.norm.cdf((bound - r**2) / r) - stats.norm.cdf((-bound - r**2) / r)
    assert (estimate < 0.5).mean() == pytest.approx(share.mean(), abs=2e-3)
    assert share.mean() == pytest.approx(inside, abs=2e-3)


def test_k_max_keeps_the_approximation_near_the_data():
    _, k, _, estimate, _ = estimates()
    used = approximation.shares(100, 20)(k)
    size = np.average(np.abs(np.asarray(estimate))[:, 0], weights=used)
    assert used.mean() == pytest.approx(1.0)
    assert set(np.unique(used)) == {0.0, 5.0}
    assert size == pytest.approx(0.993, abs=1e-3)


def test_a_weighted_estimate_gives_the_arms_their_weighted_odds():
    """CRR's weights tilt p1 / p2 by exp((Q1 - Q2) / beta), through the whole chain."""
    schedule = schedules.make_schedule("vp", 100)
    q, beta, p = jnp.array([0.3, -0.3]), 0.8, np.array([0.25, 0.75])
    weight = weights.crr_weight(q, jnp.zeros((3, 2)), beta)
    arms, counts = jnp.array([1.0, -1.0]), 400
    # Data in the shares p, at a diffusion step in the middle.
    arm = jnp.asarray([0, 1, 1, 1] * counts)
    noise = jnp.asarray(np.repeat(quantiles(counts), 4)[:, None])
    k = jnp.full(len(arm), 50)

    def loss(tilt):
        _, predict = two_points(schedule, tilt)
        action = arms[arm][:, None]
        estimate, _ = approximation.approximate(
            schedule, predict, action, k, noise, lambda x: x
        )
        score = approximation.fixed_std(schedule, action, estimate, None, k)
        return -jnp.mean(weight[arm] * score)

    expected = 0.5 * (np.log(p[0] / p[1]) + 0.6 / beta)
    slope = jax.jit(jax.grad(loss))
    assert slope(expected) == pytest.approx(0.0, abs=1e-4)
    assert slope(expected - 0.2) < -1e-2
    assert slope(expected + 0.2) > 1e-2

    denoise, _ = two_points(schedule, expected)
    draws = reverse.draw_chain(jax.random.key(0), 100, (20_000, 1))
    x = reverse.reverse_chain(denoise, reverse.reverse_steps(schedule), draws)
    odds = np.exp(0.6 / beta) * p[0] / p[1]
    assert (x > 0).mean() == pytest.approx(odds / (1 + odds), abs=0.02)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_selection_tilts_the_policy_by_the_exponential_of_value(temperature):
    """Candidates from p, chosen by value: as many N, as near to p exp(Q) / Z."""
    p, values = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.0, 0.3, 0.6, 0.9])
    q = jnp.asarray(values, jnp.float32)
    draw_key, choice_key = jax.random.split(jax.random.key(3))
    candidates = jax.random.categorical(draw_key, jnp.log(p), shape=(4000, 200))
    select = selection.softmax(temperature)
    picks = jax.vmap(lambda key, i: i[select(key, q[i])])(
        jax.random.split(choice_key, 4000), candidates
    )
    counts = np.bincount(picks, minlength=4)

    def p_value(shares):
        return stats.chisquare(counts, 4000 * shares / shares.sum()).pvalue

    assert p_value(p * np.exp(values / temperature)) > 0.01
    assert p_value(p) < 1e-6
    assert p_value(np.exp(values / temperature)) < 1e-6


def test_the_bound_weighs_diffusion_steps():
    schedule = schedules.make_schedule("vp", 5)
    beta, abar = schedule.beta, schedule.signal**2
    weight = beta / (2 * (1 - abar) * (1 - beta))
    np.testing.assert_allclose(
        approximation.variational_weights(schedule), weight / weight.mean()
    )
    k, error = jnp.array([0, 3]), jnp.array([2.0, 4.0])
    score = approximation.elbo(schedule, None, None, error, k)
    expected = -(weight / weight.mean())[[0, 3]] * [2, 4]
    np.testing.assert_allclose(score, expected, rtol=1e-5)
