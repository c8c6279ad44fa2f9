"""Every sampler against its algorithm written out in numpy, on Gaussian data.

For data N(m, s^2) the best network is known, and a sampler is an affine map of its
noise.  So it is run once on no noise and on each unit of noise alone: the first result
is the mean of its samples, the squares of the others' differences from it add up to
their variance.  Clamped and guided, samplers are run on trajectories whose entries
depend on each other, so that an entry that is not held where it should be moves the
others.  The numpy versions work in sigma = noise / signal, or in e^-h as their paper
does, and find the noise levels for themselves.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import (
    constraints,
    edm,
    flow,
    guidance,
    process,
    reverse,
    samplers,
    schedules,
)

M, S = 0.7, 0.3


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def signal_of(schedule):
    """sqrt(abar) at every k, integral or not."""
    table = np.log(schedule.signal)

    def signal(k, x):
        below = jnp.clip(jnp.floor(k).astype(int), 0, max(len(table) - 2, 0))
        ends = (jnp.asarray(table, x.dtype)[below + i] for i in (0, 1))
        low, high = ends
        return jnp.exp(low + (high - low) * (k - below))

    return signal


def best_network(schedule):
    """The exact noise prediction at every k, integral or not."""
    signal = signal_of(schedule)

    def predict(x, k):
        a = signal(k, x)
        spread = a**2 * S**2 + 1 - a**2
        return jnp.sqrt(1 - a**2) * (x - a * M) / spread

    return predict


def unit_noises(draws):
    """No noise, and each of the start and the draws alone: `draws + 2` rows."""
    return np.eye(draws + 2, draws + 1, -1).T


def responses(schedule, name, steps, **options):
    sampler = samplers.make_sampler(schedule, name, steps, **options)
    noise = unit_noises(sampler.draws)[..., None]
    draws = reverse.ChainDraws(jnp.asarray(noise[0]), jnp.asarray(noise[1:]))
    run = jax.jit(functools.partial(sampler.sample, best_network(schedule)))
    return np.asarray(run(draws))[:, 0]


def law(rows):
    return rows[0], np.sqrt(np.sum((rows[1:] - rows[0]) ** 2))


def denoise(x, sigma):
    """The exact denoiser of x / signal at sigma."""
    return (x * S**2 + M * sigma**2) / (S**2 + sigma**2)


def ends(schedule):
    sigma = schedule.noise / schedule.signal
    return sigma[-1], sigma[0]


def sigmas(schedule, grid, n):
    """The n noise levels of a grid, from high to low, by their definition."""
    high, low = ends(schedule)
    if grid == "log":
        return high * (low / high) ** (np.arange(n) / max(n - 1, 1))
    if grid == "karras":  # eq. 5
        ramp = np.arange(n) / max(n - 1, 1)
        return (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    if grid == "flow":
        time = np.linspace(1 / (1 + high), 1 / (1 + low), n)
        return (1 - time) / time
    K = schedule.steps
    k = np.linspace(K - 1, 0, n)
    if n <= K:
        k = np.array([round(float(value) + 1e-9) for value in k])
    abar = np.exp(np.interp(k, np.arange(K), np.log(schedule.signal**2)))
    return np.sqrt(1 / abar - 1)


def signal_at(sigma):
    return 1 / np.hypot(1, sigma)


# Algorithms ---------------------------------------------------------------------------
# Each takes a start and draws as the network's process has them, the noise levels from
# high to low, a denoiser (x, sigma) -> x_0 in the scale of x_0 + sigma noise, and what
# holds a sample (x, sigma) -> x in that scale.


def free(x, sigma):
    return x


def euler(start, z, sigma, denoise=denoise, hold=free):
    """Euler's method on Karras et al.'s process."""
    x = hold(start / signal_at(sigma[0]), sigma[0])
    for now, after in zip(sigma, np.append(sigma[1:], 0), strict=True):
        x = hold(x + (after - now) * (x - denoise(x, now)) / now, after)
    return x


def multistep(start, z, sigma, denoise=denoise, hold=free, lower_order_last=False):
    """Algorithm 2 of Lu et al. 2022, in their variables."""
    a, s = signal_at(sigma), sigma * signal_at(sigma)

    def held(x, i):
        return a[i] * hold(x / a[i], sigma[i])

    x, before, h_before = held(start, 0), None, None
    for i in range(len(sigma) - 1):
        x0 = denoise(x / a[i], sigma[i])
        h = np.log(a[i + 1] / s[i + 1]) - np.log(a[i] / s[i])
        D = x0
        if before is not None and not (lower_order_last and i == len(sigma) - 2):
            r = h_before / h
            D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = held(s[i + 1] / s[i] * x - a[i + 1] * np.expm1(-h) * D, i + 1)
        before, h_before = x0, h
    return denoise(x / a[-1], sigma[-1])


def heun(start, z, sigma, denoise=denoise, hold=free, churn=edm.NO_CHURN):
    """Algorithm 2 of Karras et al. 2022, sigma never above the schedule's."""
    n = len(sigma)
    x = start / signal_at(sigma[0])
    for i, (now, after) in enumerate(zip(sigma, np.append(sigma[1:], 0), strict=True)):
        if churn.amount and churn.low <= now <= churn.high:
            hat = min(now * (1 + min(churn.amount / n, 2**0.5 - 1)), sigma[0])
            x = x + np.sqrt(hat**2 - now**2) * churn.noise * z[i]
            now = hat
        x = hold(x, now)
        d = (x - denoise(x, now)) / now
        x_after = hold(x + (after - now) * d, after)
        if after > 0:
            d_after = (x_after - denoise(x_after, after)) / after
            x_after = x + (after - now) * (d + d_after) / 2
        x = x_after
    return x


def unmoved(x, *_):
    return x


def ddpm(
    start,
    z,
    sigma,
    denoise=denoise,
    hold=free,
    variance="posterior",
    before=unmoved,
    after=unmoved,
):
    """Ho et al.'s eqs. 6 and 7 on the process of these levels.

    `before(x, i, var)` moves a sample before its step, `after` its mean.
    """
    x = hold(start, 0)
    for i, now in enumerate(signal_at(sigma) ** 2):
        left = signal_at(sigma[i + 1]) ** 2 if i + 1 < len(sigma) else 1.0
        beta = 1 - now / left
        posterior = beta * (1 - left) / (1 - now)
        added = {"posterior": posterior, "beta": beta if left < 1 else 0.0}[variance]
        x = before(x, i, added)
        mean = beta * np.sqrt(left) / (1 - now) * denoise(x / np.sqrt(now), sigma[i])
        mean = mean + (1 - left) * np.sqrt(1 - beta) / (1 - now) * x
        x = hold(after(mean, i, added) + np.sqrt(added) * z[i], 0)
    return x


ODES = {
    "ddim": (euler, "even"),
    "flow": (euler, "flow"),
    "dpmpp_1": (euler, "log"),
    "dpmpp_2m": (multistep, "log"),
    "edm_heun": (heun, "karras"),
}
ALGORITHMS = {"ancestral": (ddpm, "even"), **ODES}
PROBLEMS = [("vp", 5, 9), ("vp", 50, 15), ("linear", 1000, 2)]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", ODES)
def test_a_sampler_without_noise_is_its_algorithm(name, problem):
    schedule = schedules.make_schedule(*problem[:2])
    algorithm, grid = ODES[name]
    levels = sigmas(schedule, grid, problem[2])
    expected = algorithm(unit_noises(0)[0], None, levels)
    actual = responses(schedule, name, problem[2])
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("K", "n", "variance"),
    [(5, None, "beta"), (20, 6, "beta"), (20, 6, "posterior"), (20, 1, "posterior")],
)
def test_ancestral_sampling_may_skip_steps(K, n, variance):
    schedule = schedules.make_schedule("vp", K)
    actual = responses(schedule, "ancestral", n, variance=variance)
    n = n or K
    noise = unit_noises(n)
    levels = sigmas(schedule, "even", n)
    expected = ddpm(noise[0], noise[1:], levels, variance=variance)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


# Trajectories, clamped and guided -----------------------------------------------------

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
    return noise, reverse.ChainDraws(jnp.asarray(noise[0]), jnp.asarray(noise[1:]))


CLAMP = constraints.inpaint(MASK, VALUES)


@pytest.mark.parametrize("kind", ["clamped", "guided and clamped"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_guided_and_clamped_sampler_is_its_algorithm(name, kind):
    """Guides change x0_hat before it is clipped; the clamp holds every sample."""
    schedule, n = schedules.make_schedule("vp", 20), 7
    churn = {"churn": CHURN} if name == "edm_heun" else {}
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
    assert np.mean((LOW < expected) & (expected < HIGH)) > 0.7  # not all at a bound


def chain_of_sigmas(sigma):
    """A schedule whose steps have these noise levels, ascending."""
    abar = 1 / (1 + np.asarray(sigma) ** 2)
    return schedules.from_betas(1 - abar / np.append(1.0, abar[:-1]))


@pytest.mark.parametrize(
    ("schedule", "name", "n", "options", "std"),
    [
        (("vp", 5), "ancestral", None, {}, 0.142),
        (("vp", 5), "ancestral", None, {"variance": "beta"}, 0.222),
        (("vp", 50), "ancestral", None, {}, 0.263),
        (("vp", 50), "ancestral", None, {"variance": "beta"}, 0.310),
        (("cosine", 20), "ancestral", None, {}, 0.245),
        (("vp", 50), "dpmpp_2m", 15, {}, 0.296),
        (("vp", 50), "dpmpp_1", 15, {}, 0.269),
        (("linear", 1000), "dpmpp_2m", 15, {}, 0.307),
        (("linear", 1000), "ddim", 15, {}, 0.2185),
        # Evenly spaced steps make the last extrapolation wild.
        (("linear", 1000), "dpmpp_2m", 15, {"grid": schedules.even_grid}, 0.396),
        (
            ("linear", 1000),
            "dpmpp_2m",
            15,
            {"grid": schedules.even_grid, "lower_order_last": True},
            0.234,
        ),
    ],
)
def test_deviations_computed_elsewhere(schedule, name, n, options, std):
    rows = responses(schedules.make_schedule(*schedule), name, n, **options)
    assert law(rows)[1] == pytest.approx(std, abs=1.1e-3)


@pytest.mark.parametrize(("n", "std"), [(5, 0.93), (10, 0.377), (18, 0.320)])
def test_heun_on_the_levels_of_karras_as_computed_elsewhere(n, std):
    schedule = chain_of_sigmas(np.geomspace(0.002, 80, 400))
    assert law(responses(schedule, "edm_heun", n))[1] == pytest.approx(std, abs=1e-3)


@pytest.mark.parametrize(("n", "std"), [(5, 0.200), (10, 0.247)])
def test_ddim_is_euler_on_a_flow(n, std):
    """On the levels t = i / n of a flow, up to the scale of x: see `samplers`."""
    time = np.maximum(np.arange(n) / n, 1e-7)[::-1]
    schedule = chain_of_sigmas((1 - time) / time)

    def velocity(x, t):
        variance = t**2 * S**2 + (1 - t) ** 2
        x0 = M + t * S**2 / variance * (x - t * M)
        return (x0 - x) / (1 - t)

    by_flow = flow.euler(velocity, jnp.asarray(unit_noises(0)[0])[:, None], n)[:, 0]
    for name in ("ddim", "flow"):
        rows = responses(schedule, name, n)
        np.testing.assert_allclose(rows, by_flow, atol=1e-6)
    assert law(rows)[1] == pytest.approx(std, abs=6e-4)


ORDERS = [("ddim", 1), ("flow", 1), ("dpmpp_1", 1), ("dpmpp_2m", 2), ("edm_heun", 2)]


@pytest.mark.parametrize(("name", "order"), ORDERS)
def test_the_order_of_convergence(name, order):
    """Against the solution of the ODE, on which (x - signal m) / spread is constant."""
    schedule = schedules.make_schedule("vp", 1000)
    a, s = schedule.signal[[0, -1]], schedule.noise[[0, -1]]
    spread = np.hypot(a * S, s)
    x = a[0] * M + spread[0] / spread[1] * (unit_noises(0)[0] - a[1] * M)
    exact = denoise(x / a[0], s[0] / a[0])
    options = {"grid": schedules.log_snr_grid} if name == "ddim" else {}
    errors = [
        np.abs(responses(schedule, name, n, **options) - exact).max() for n in (41, 81)
    ]
    assert errors[1] < {1: 0.02, 2: 2e-3}[order]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.2)


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


@pytest.mark.parametrize(("name", "order"), ORDERS[1:])
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


CHURN = edm.Churn(amount=6.0, low=0.1, high=3.0, noise=1.1)


def test_heun_with_churn_is_its_algorithm():
    schedule = schedules.make_schedule("vp", 50)
    for churn in (CHURN, edm.Churn(amount=100.0)):
        noise = unit_noises(12)
        levels = sigmas(schedule, "karras", 12)
        expected = heun(noise[0], noise[1:], levels, churn=churn)
        actual = responses(schedule, "edm_heun", 12, churn=churn)
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_churn_keeps_the_marginal():
    schedule = schedules.make_schedule("vp", 1000)
    rows = responses(schedule, "edm_heun", 300, churn=edm.Churn(amount=60.0))
    a, s = schedule.signal[0], schedule.noise[0]
    marginal = a * S**2 / np.hypot(a * S, s)  # of x0_hat at the last level
    np.testing.assert_allclose(law(rows), (M, marginal), rtol=3e-3)
    # Most of it is new noise: the start is all but forgotten.
    assert abs(rows[1] - rows[0]) < 0.1 * marginal


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_the_ends_of_a_schedule_in_single_precision(name):
    """Cosine's last signal is nearly 0; clipped, sampled, and told steps within."""
    with jax.enable_x64(False):
        schedule = schedules.make_schedule("cosine", 1000)
        clip = constraints.clip_to(jnp.array([-0.5]), jnp.array([0.9]))
        sampler = samplers.make_sampler(schedule, name, 20, constraint=clip)
        draws = reverse.draw_chain(jax.random.key(0), sampler.draws, (256, 1))

        def predict(x, k):
            k = jnp.where((k >= 0) & (k <= 999), k, jnp.nan)
            return best_network(schedule)(x, k)

        x = jax.jit(lambda d: sampler.sample(predict, d))(draws)
        assert x.dtype == jnp.float32
        assert jnp.abs(x - 0.2).max() <= 0.7 + 1e-6  # false for nan
        assert float(x.mean()) == pytest.approx(0.68, abs=0.05)


@pytest.mark.parametrize("name", ["dpmpp_2m", "edm_heun"])
def test_unrolling_and_rematerialisation_change_no_value_and_no_gradient(name):
    schedule = schedules.make_schedule("vp", 5)

    def end(weight, **options):
        sampler = samplers.make_sampler(
            schedule, name, 4, parameterisation=process.X0, **options
        )
        draws = reverse.draw_chain(jax.random.key(0), 0, (16, 2), jnp.float64)
        x = sampler.sample(lambda x, k: jnp.tanh(weight * x) + 0.1 * k, draws)
        return jnp.sum(x**2)

    plain = jax.jit(jax.value_and_grad(end))(0.8)
    other = jax.jit(jax.value_and_grad(lambda w: end(w, unroll=2, remat=True)))(0.8)
    np.testing.assert_allclose(plain, other, rtol=1e-12)


def test_the_default_is_the_program_of_the_plain_reverse_chain():
    """No look-up of levels and no other work is added where all steps are visited."""
    schedule = schedules.make_schedule("vp", 5)
    clip = constraints.clip_to(-jnp.ones(1), jnp.ones(1))
    sampler = samplers.make_sampler(schedule, "ancestral", constraint=clip)
    draws = reverse.draw_chain(jax.random.key(0), 5, (4, 1), jnp.float64)

    def predict(x, k):
        return jnp.sin(x + k)

    def plain(draws):
        denoiser = process.denoiser(schedule, predict)
        steps = reverse.reverse_steps(schedule)
        denoiser = constraints.constrain(denoiser, clip)
        return clip(reverse.reverse_chain(denoiser, steps, draws))

    ours = jax.make_jaxpr(lambda draws: sampler.sample(predict, draws))(draws)
    assert str(ours) == str(jax.make_jaxpr(plain)(draws))


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("dpm", 5, "sampler must be one of"),
        ("ddim", 0, "sample_steps must be at least 1, got 0"),
        ("ancestral", 6, "at most diffusion_steps, 5, for the ancestral sampler"),
    ],
)
def test_impossible_samplers_are_refused(name, steps, message):
    with pytest.raises(ValueError, match=message):
        samplers.make_sampler(schedules.make_schedule("vp", 5), name, steps)


def test_impossible_settings_are_refused():
    schedule = schedules.make_schedule("vp", 5)
    with pytest.raises(ValueError, match="variance must be one of"):
        samplers.make_sampler(schedule, "ancestral", variance="gamma")
    with pytest.raises(ValueError, match="churn must not be negative"):
        samplers.make_sampler(schedule, "edm_heun", churn=edm.Churn(amount=-1.0))
    with pytest.raises(ValueError, match="sample_steps must be 1, got 2"):
        samplers.make_sampler(schedules.make_schedule("vp", 1), "ddim", 2)


def test_one_diffusion_step_has_one_sample_step():
    schedule = schedules.make_schedule("vp", 1)
    for name in samplers.SAMPLERS:
        rows = responses(schedule, name, None)
        sigma = ends(schedule)[0]
        x = unit_noises(0)[0] / signal_at(sigma)
        np.testing.assert_allclose(rows[:2], denoise(x, sigma))
