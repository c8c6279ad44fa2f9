"""Every sampler against its algorithm written out in numpy, on Gaussian data.

For data N(m, s^2) the best network is known, and a sampler is an affine map of its
noise.  So it is run once on no noise and on each unit of noise alone: the first result
is the mean of its samples, the squares of the others' differences from it add up to
their variance.  The numpy versions work in sigma = noise / signal, or in e^-h as their
paper does, and find the noise levels for themselves.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import constraints, edm, flow, process, reverse, samplers, schedules

M, S = 0.7, 0.3


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def best_network(schedule):
    """The exact noise prediction at every k, integral or not."""
    table = 2 * np.log(schedule.signal)

    def predict(x, k):
        k = jnp.asarray(k, x.dtype)
        abar = jnp.exp(jnp.interp(k, jnp.arange(len(table)), jnp.asarray(table)))
        spread = abar * S**2 + 1 - abar
        return jnp.sqrt(1 - abar) * (x - jnp.sqrt(abar) * M) / spread

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


def start(schedule, draws=0):
    noise = unit_noises(draws)
    return noise[0] * np.hypot(1, ends(schedule)[0]), noise[1:]


def euler(schedule, sigma):
    """Euler's method on Karras et al.'s process."""
    x, _ = start(schedule)
    for now, after in zip(sigma, np.append(sigma[1:], 0), strict=True):
        x = x + (after - now) * (x - denoise(x, now)) / now
    return x


def multistep(schedule, sigma, lower_order_last=False):
    """Algorithm 2 of Lu et al. 2022, in their variables."""
    a, s = 1 / np.hypot(1, sigma), sigma / np.hypot(1, sigma)
    x, before, h_before = start(schedule)[0] * a[0], None, None
    for i in range(len(sigma) - 1):
        x0 = denoise(x / a[i], sigma[i])
        h = np.log(a[i + 1] / s[i + 1]) - np.log(a[i] / s[i])
        D = x0
        if before is not None and not (lower_order_last and i == len(sigma) - 2):
            r = h_before / h
            D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = s[i + 1] / s[i] * x - a[i + 1] * np.expm1(-h) * D
        before, h_before = x0, h
    return denoise(x / a[-1], sigma[-1])


def heun(schedule, sigma, churn=edm.NO_CHURN):
    """Algorithm 2 of Karras et al. 2022, sigma never above the schedule's."""
    n = len(sigma)
    x, z = start(schedule, n if churn.amount else 0)
    for i, (now, after) in enumerate(zip(sigma, np.append(sigma[1:], 0), strict=True)):
        if churn.amount and churn.low <= now <= churn.high:
            hat = min(now * (1 + min(churn.amount / n, 2**0.5 - 1)), sigma[0])
            x = x + np.sqrt(hat**2 - now**2) * churn.noise * z[i]
            now = hat
        d = (x - denoise(x, now)) / now
        x_after = x + (after - now) * d
        if after > 0:
            d_after = (x_after - denoise(x_after, after)) / after
            x_after = x + (after - now) * (d + d_after) / 2
        x = x_after
    return x


ODES = {
    "ddim": (euler, "even"),
    "flow": (euler, "flow"),
    "dpmpp_1": (euler, "log"),
    "dpmpp_2m": (multistep, "log"),
    "edm_heun": (heun, "karras"),
}
PROBLEMS = [("vp", 5, 1), ("vp", 5, 9), ("vp", 50, 15), ("linear", 1000, 2)]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", ODES)
def test_a_sampler_without_noise_is_its_algorithm(name, problem):
    schedule = schedules.make_schedule(*problem[:2])
    algorithm, grid = ODES[name]
    expected = algorithm(schedule, sigmas(schedule, grid, problem[2]))
    actual = responses(schedule, name, problem[2])
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def subsampled_ddpm(schedule, n, variance):
    """Mean and deviation by Ho et al.'s eqs. 6 and 7, on the coarser process."""
    abar = 1 / (1 + sigmas(schedule, "even", n)[::-1] ** 2)
    before = np.append(1.0, abar[:-1])
    beta = 1 - abar / before
    mean, var = 0.0, 1.0
    for k in range(n - 1, -1, -1):
        c_x0 = beta[k] * np.sqrt(before[k]) / (1 - abar[k])
        c_xk = (1 - before[k]) * np.sqrt(1 - beta[k]) / (1 - abar[k])
        gain = np.sqrt(abar[k]) * S**2 / (abar[k] * S**2 + 1 - abar[k])
        mean = c_x0 * (M + gain * (mean - np.sqrt(abar[k]) * M)) + c_xk * mean
        added = {
            "posterior": beta[k] * (1 - before[k]) / (1 - abar[k]),
            "beta": beta[k] if k else 0.0,
        }
        var = (c_x0 * gain + c_xk) ** 2 * var + added[variance]
    return mean, np.sqrt(var)


@pytest.mark.parametrize(
    ("K", "n", "variance"),
    [(5, None, "beta"), (20, 6, "beta"), (20, 6, "posterior"), (20, 1, "posterior")],
)
def test_ancestral_sampling_may_skip_steps(K, n, variance):
    schedule = schedules.make_schedule("vp", K)
    actual = law(responses(schedule, "ancestral", n, variance=variance))
    expected = subsampled_ddpm(schedule, n or K, variance)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


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


@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("dpmpp_1", 1), ("dpmpp_2m", 2), ("edm_heun", 2)]
)
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


CHURN = edm.Churn(amount=6.0, low=0.1, high=3.0, noise=1.1)


def test_heun_with_churn_is_its_algorithm():
    schedule = schedules.make_schedule("vp", 50)
    for churn in (CHURN, edm.Churn(amount=100.0)):
        expected = heun(schedule, sigmas(schedule, "karras", 12), churn)
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
        np.testing.assert_allclose(rows[:2], denoise(start(schedule)[0], sigma))
