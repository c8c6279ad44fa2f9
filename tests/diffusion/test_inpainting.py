"""In-painting: what is held is exact everywhere, and samples the conditional law."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import (
    constraints,
    guidance,
    process,
    reverse,
    samplers,
    schedules,
)

PATTERNS = [
    ((4,), (4,), (4,)),
    ((3, 2), (2,), (3, 2)),
    ((5, 4, 2), (4, 2), (5, 4, 2)),  # one pattern for the batch
    ((5, 4, 2), (5, 4, 1), (2,)),
    ((2, 3, 4, 2), (3, 4, 2), (1, 1, 4, 2)),
]


@pytest.mark.parametrize("shapes", PATTERNS)
def test_entries_under_any_mask_take_their_values(shapes):
    rng = np.random.default_rng(3)
    x, values = (rng.normal(size=shapes[i]).astype(np.float32) for i in (0, 2))
    mask = rng.random(shapes[1]) < 0.5
    clamp = constraints.inpaint(jnp.asarray(mask), jnp.asarray(values))
    held = clamp(jnp.asarray(x))
    np.testing.assert_array_equal(held, np.where(mask, values, x))
    np.testing.assert_array_equal(clamp(held), held)
    assert clamp(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_constraints_in_turn_end_with_the_last():
    low = constraints.clip_to(jnp.array(-1.0), jnp.array(0.5))
    clamp = constraints.inpaint(np.array([True, False]), np.array([3.0, 0.0]))
    x = jnp.array([-2.0, 2.0])
    np.testing.assert_array_equal(constraints.in_turn(low, clamp)(x), [3.0, 0.5])
    np.testing.assert_array_equal(constraints.in_turn(clamp, low)(x), [0.5, 0.5])
    assert constraints.in_turn()(x) is x


SHAPE = (2, 4, 3)  # B, H, A
RNG = np.random.default_rng(5)
MASK, VALUES = RNG.random(SHAPE) < 0.4, RNG.normal(size=SHAPE).astype(np.float32)
CLAMP = constraints.inpaint(MASK, VALUES)


def unless_free(x, y):
    """`y`; not a number if an entry of `x` is not held, to the last bit."""
    held = jnp.all(jnp.where(MASK, x == VALUES, True))
    return jnp.where(held, y, jnp.nan)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_no_network_and_no_gradient_ever_sees_a_free_entry(name):
    schedule = schedules.make_schedule("vp", 9)
    sampler = samplers.make_sampler(schedule, name, 4, parameterisation=process.X0)
    draws = reverse.draw_chain(jax.random.key(0), sampler.draws, SHAPE)

    def gradient(x, k):
        return unless_free(x, x - 0.1 * k)

    guides = [guidance.classifier(gradient, 0.3)]
    if name == "ancestral":
        guides += [guidance.diffuser(gradient, 0.3, repeats=3), guidance.mean(gradient)]
    guide = guidance.compose(*guides)

    def predict(x, k):
        return unless_free(x, jnp.tanh(x + jnp.sum(x, axis=(1, 2), keepdims=True)))

    x = jax.jit(lambda d: sampler.sample(predict, d, guide, CLAMP))(draws)
    np.testing.assert_array_equal(np.asarray(x)[MASK], VALUES[MASK])
    assert np.all(np.isfinite(x))


# A Brownian bridge --------------------------------------------------------------------
# s_0 ~ N(0, 1) and sixteen steps of variance 0.05, given s_0 = -0.5 and s_16 = 0.8.

H, K = 17, 100
SCHEDULE = schedules.make_schedule("cosine", K)
TIME = np.arange(H)
COV = 1.0 + 0.05 * np.minimum(TIME[:, None], TIME)
ENDS = np.isin(TIME, (0, H - 1))
GIVEN = np.where(ENDS, np.linspace(-0.5, 0.8, H), 0.0)


def free_denoiser():
    """The matrices of E[s | all of s noisy]: trained without the clamp."""
    a, s = SCHEDULE.signal[:, None, None], SCHEDULE.noise[:, None, None]
    return a * COV @ np.linalg.inv(a**2 * COV + s**2 * np.eye(H))


def clamped_denoiser():
    """Those of E[s | its ends, the rest noisy]: trained with the clamp."""
    within = ~ENDS
    to_ends = COV[np.ix_(within, ENDS)] @ np.linalg.inv(COV[np.ix_(ENDS, ENDS)])
    left = COV[np.ix_(within, within)] - to_ends @ COV[np.ix_(ENDS, within)]
    slopes = np.zeros((K, H, H))
    for k, (a, s) in enumerate(zip(SCHEDULE.signal, SCHEDULE.noise, strict=True)):
        gain = a * left @ np.linalg.inv(a**2 * left + s**2 * np.eye(H - 2))
        slopes[k][np.ix_(within, within)] = gain
        slopes[k][np.ix_(within, ENDS)] = (np.eye(H - 2) - a * gain) @ to_ends
    return slopes


def ddpm_law(slopes):
    """Mean and covariance of the clamped chain, by Ho et al.'s eqs. 6 and 7."""
    abar = np.append(1.0, SCHEDULE.signal**2)
    free = np.diag(~ENDS).astype(float)
    mean, cov = GIVEN, free
    for k in range(K - 1, -1, -1):
        beta, now, before = SCHEDULE.beta[k], abar[k + 1], abar[k]
        c_x0 = beta * np.sqrt(before) / (1 - now)
        c_xk = (1 - before) * np.sqrt(1 - beta) / (1 - now)
        A = free @ (c_x0 * slopes[k] + c_xk * np.eye(H))
        mean = A @ mean + GIVEN
        cov = A @ cov @ A.T + beta * (1 - before) / (1 - now) * free
    return mean, cov


@pytest.mark.parametrize(
    ("trained", "variance", "first"),
    [(clamped_denoiser, 0.191, -0.419), (free_denoiser, 0.824, -0.230)],
)
def test_a_brownian_bridge_needs_the_clamp_in_training_too(trained, variance, first):
    """The exact variance in the middle is 0.2, the exact mean of s_1 is -0.41875.

    The expected numbers were estimated from samples of another implementation.
    """
    slopes = trained()
    sampler = samplers.make_sampler(SCHEDULE, "ancestral", parameterisation=process.X0)
    clamp = constraints.inpaint(ENDS[:, None], GIVEN[:, None])

    def predict(x, k):  # x [1, H, 1]
        return jnp.asarray(slopes, x.dtype)[k] @ x

    def middle(draws):
        x = sampler.sample(predict, draws, clamp=clamp)
        return x[0, H // 2, 0], x[0, :, 0]

    zero = reverse.ChainDraws(jnp.zeros((1, H, 1)), jnp.zeros((K, 1, H, 1)))
    run = jax.jit(jax.value_and_grad(middle, has_aux=True))
    (_, mean), responses = run(zero)
    spread = sum(np.sum(np.square(r)) for r in responses)
    expected_mean, expected_cov = ddpm_law(slopes)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-5)
    assert spread == pytest.approx(expected_cov[H // 2, H // 2], rel=1e-4)
    assert spread == pytest.approx(variance, abs=4e-3)
    assert mean[1].item() == pytest.approx(first, abs=4e-3)
    np.testing.assert_array_equal(mean[np.array([0, H - 1])], np.float32([-0.5, 0.8]))
