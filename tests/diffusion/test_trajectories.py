"""Samplers, clamped and guided, against their algorithms in numpy.

The samples are trajectories of Gaussian data whose entries depend on each other, so
that an entry that is not held where it should be moves the others.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import constraints, edm, guidance, process, samplers, schedules
from jdql.diffusion.reverse import ChainDraws
from tests.diffusion.algorithms import (
    ALGORITHMS,
    ddpm,
    ends,
    sigmas,
    signal_at,
    signal_of,
    unmoved,
)


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


SHAPE, D = (3, 2), 6  # H, A
RNG = np.random.default_rng(7)
ROOT = 0.4 * RNG.normal(size=(D, D))
COV, MEAN = ROOT @ ROOT.T, RNG.normal(scale=0.5, size=D)
MASK = np.array([[True, False], [False, False], [False, True]])
VALUES = RNG.uniform(-0.8, 0.8, SHAPE)
LOW, HIGH = -0.75, 0.8125
CLIP = constraints.clip_to(*jnp.array([LOW, HIGH]))
LAMBDA, U = np.linalg.eigh(COV)


def flat(x):
    return x.reshape(*x.shape[:-2], D)


def trajectory_denoiser(x, sigma, mean=MEAN):
    """The best denoiser of N(MEAN, COV), in numpy, x in the scale of x_0."""
    gain = U * (LAMBDA / (LAMBDA + sigma**2)) @ U.T
    return (mean + (flat(x) - mean) @ gain).reshape(x.shape)


def trajectory_network(schedule, mean=MEAN):
    """The same, as a network that predicts noise, at every k."""
    signal = signal_of(schedule)

    def predict(x, k):
        a = signal(k, x)
        gain = U / (a**2 * LAMBDA + 1 - a**2) @ U.T
        return (jnp.sqrt(1 - a**2) * (flat(x) - a * mean) @ gain).reshape(x.shape)

    return predict


def held(x, sigma):
    return np.where(MASK, VALUES / signal_at(sigma), x)


def bounded(denoise):
    """Clipped, then held."""
    return lambda x, sigma: held(np.clip(denoise(x, sigma), LOW, HIGH), 0)


WEIGHT, GOAL = 0.8, 0.4


def pull(schedule):
    """An energy at every noise level and, in numpy, the shift of x_0 by its gradient.

    The energy is -abar / 2 |x_k - GOAL|^2, so that it depends on the step.
    """
    signal = signal_of(schedule)

    def energy(x, k):
        return -0.5 * jnp.sum((signal(k, x) * (x - GOAL)) ** 2, (-2, -1))

    def gradient(x, a):
        return -(a**2) * (x - GOAL)

    def shift(x, sigma):
        a = signal_at(sigma)
        return (sigma * a) ** 2 / a * gradient(a * x, a)

    return energy, gradient, shift


OTHER = MEAN + RNG.normal(scale=0.3, size=D)


def guide_of_estimates(schedule):
    """Both kinds at once, and the denoiser that they make in numpy."""
    energy, _, shift = pull(schedule)
    guide = guidance.compose(
        guidance.classifier_free(trajectory_network(schedule, OTHER), 1.7),
        guidance.energy(energy, WEIGHT),
    )

    def guided(x, sigma):
        other = trajectory_denoiser(x, sigma, OTHER)
        mixed = other + 1.7 * (trajectory_denoiser(x, sigma) - other)
        return mixed + WEIGHT * shift(x, sigma)

    return guide, guided


def trajectory_draws(sampler, rows=3):
    noise = np.random.default_rng(1).normal(size=(sampler.draws + 1, rows, *SHAPE))
    return noise, ChainDraws(jnp.asarray(noise[0]), jnp.asarray(noise[1:]))


CLAMP = constraints.inpaint(MASK, VALUES)


@pytest.mark.parametrize("kind", ["clamped", "guided and clamped"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_guided_and_clamped_sampler_is_its_algorithm(name, kind):
    """Guides change x0_hat before it is clipped; the clamp holds every sample."""
    schedule, n = schedules.make_schedule("vp", 20), 7
    churn = edm.Churn(amount=6.0, low=0.1, high=3.0, noise=1.1)
    churn = {"churn": churn} if name == "edm_heun" else {}
    sampler = samplers.make_sampler(schedule, name, n, constraint=CLIP, **churn)
    noise, draws = trajectory_draws(sampler)
    guide, denoiser = guide_of_estimates(schedule)
    if "guided" not in kind:
        guide, denoiser = None, trajectory_denoiser
    algorithm, grid = ALGORITHMS[name]
    expected = algorithm(
        noise[0],
        noise[1:],
        sigmas(schedule, grid, n),
        denoise=bounded(denoiser),
        hold=held,
        **churn,
    )
    network = trajectory_network(schedule)
    actual = jax.jit(lambda d: sampler.sample(network, d, guide, CLAMP))(draws)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(actual[:, MASK], np.stack(3 * [VALUES[MASK]]))


@pytest.mark.parametrize("guide", ["mean", "diffuser", "both"])
def test_guides_of_a_step_follow_the_recursion(guide):
    """They move samples after x0_hat is clipped, held in between, at the true k."""
    schedule, n, stop = schedules.make_schedule("vp", 20), 7, 6
    signal = signal_of(schedule)
    sampler = samplers.make_sampler(schedule, "ancestral", n, constraint=CLIP)
    noise, draws = trajectory_draws(sampler)
    _, pulled, _ = pull(schedule)

    def gradient(x, k):
        return 3 * pulled(x, signal(k, x)) + jnp.sin(x.sum((-2, -1), keepdims=True))

    k = np.rint(np.linspace(19, 0, n) + 1e-9)
    table = schedule.signal[k.astype(int)]

    def numpy_gradient(x, i):
        return 3 * pulled(x, table[i]) + np.sin(x.sum((-2, -1), keepdims=True))

    def before(x, i, variance):
        for _ in range(2):
            if k[i] >= stop:
                x = x + 0.9 * variance * numpy_gradient(x, i)
            x = held(x, 0)
        return x

    def after(mean, i, variance):
        if i + 1 == n:
            return mean
        return mean + 0.7 * variance * numpy_gradient(held(mean, 0), i + 1)

    mean = guidance.mean(gradient, 0.7)
    diffuser = guidance.diffuser(gradient, 0.9, repeats=2, stop=stop)
    both = guidance.compose(diffuser, mean)
    expected = ddpm(
        noise[0],
        noise[1:],
        sigmas(schedule, "even", n),
        denoise=bounded(trajectory_denoiser),
        hold=held,
        before=unmoved if guide == "mean" else before,
        after=unmoved if guide == "diffuser" else after,
    )
    chosen = {"mean": mean, "diffuser": diffuser, "both": both}[guide]
    network = trajectory_network(schedule)
    actual = jax.jit(lambda d: sampler.sample(network, d, chosen, CLAMP))(draws)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
    assert np.mean((expected > LOW) & (expected < HIGH)) > 0.7  # not all at a bound


# Convergence --------------------------------------------------------------------------

FREE, HELD = ~MASK.ravel(), MASK.ravel()
PICK_FREE, PICK_HELD = np.eye(D)[:, FREE], np.eye(D)[:, HELD]  # as products: x @ PICK
REGRESSION = COV[np.ix_(FREE, HELD)] @ np.linalg.inv(COV[np.ix_(HELD, HELD)])
CONDITIONAL = COV[np.ix_(FREE, FREE)] - REGRESSION @ COV[np.ix_(HELD, FREE)]
REWARD = RNG.normal(size=FREE.sum())


def conditional_network(schedule):
    """x_0 given the held entries, which it reads off its input, and its slope."""
    signal, (variances, V) = signal_of(schedule), np.linalg.eigh(CONDITIONAL)

    def slope(k, x):
        a = signal(k, x)
        return V * (a * variances / (a**2 * variances + 1 - a**2)) @ V.T, a

    def predict(x, k):
        gain, a = slope(k, x)
        mean = MEAN[FREE] + (flat(x) @ PICK_HELD - MEAN[HELD]) @ REGRESSION.T
        x0 = mean + (flat(x) @ PICK_FREE - a * mean) @ gain
        return (x0 @ PICK_FREE.T + 9.0 * HELD).reshape(x.shape)

    def gradient(x, k):
        """Of log E[exp(REWARD . x_0) | x_k]; of held entries it is of no account."""
        g = PICK_FREE @ slope(k, x)[0] @ REWARD - 9.0 * HELD
        return jnp.broadcast_to(g.reshape(SHAPE), x.shape)

    return predict, gradient


def tilted_conditional(start, sigma):
    """The end of the ODE of the tilted law given the held entries, from a start."""
    variances, V = np.linalg.eigh(CONDITIONAL)
    mean = MEAN[FREE] + REGRESSION @ (VALUES.ravel() - MEAN)[HELD]
    mean = mean + CONDITIONAL @ REWARD
    high, low = sigma
    shrunk = np.sqrt((variances + low**2) / (variances + high**2))
    at_end = V * (shrunk * variances / (variances + low**2)) @ V.T
    return mean + (flat(start)[:, FREE] * np.hypot(1, high) - mean) @ at_end


@pytest.mark.parametrize(
    ("name", "order"), [("flow", 1), ("dpmpp_1", 1), ("dpmpp_2m", 2), ("edm_heun", 2)]
)
def test_the_order_of_convergence_clamped_and_guided(name, order):
    """To the conditional law, tilted: the network must see the held values.

    DDIM is `dpmpp_1` on the grid that it converges on.
    """
    schedule = schedules.make_schedule("vp", 1000)
    predict, gradient = conditional_network(schedule)

    def error(n):
        sampler = samplers.make_sampler(schedule, name, n, parameterisation=process.X0)
        noise, draws = trajectory_draws(sampler)
        guide = guidance.classifier(gradient)
        x = jax.jit(lambda d: sampler.sample(predict, d, guide, CLAMP))(draws)
        expected = tilted_conditional(noise[0], ends(schedule))
        return np.abs(flat(np.asarray(x))[:, FREE] - expected).max()

    errors = error(41), error(81)
    assert errors[1] < {1: 0.03, 2: 3e-3}[order]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.2)
