"""Every sampler against its algorithm written out in numpy, on Gaussian data.

For data N(m, s^2) the best network is known, and a sampler is an affine map of its
noise.  So it is run once on no noise and on each unit of noise alone: the first result
is the mean of its samples, the squares of the others' differences from it add up to
their variance.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import constraints, edm, flow, process, reverse, samplers, schedules
from tests.diffusion.algorithms import (
    ODES,
    M,
    S,
    ddpm,
    denoise,
    ends,
    heun,
    sigmas,
    signal_at,
    signal_of,
)


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


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


GRIDS = {
    "ddim": schedules.even_grid,
    "flow": schedules.flow_grid,
    "dpmpp_1": schedules.log_snr_grid,
    "dpmpp_2m": schedules.log_snr_grid,
    "edm_heun": schedules.karras_grid,
}


@pytest.mark.parametrize("name", ODES)
def test_a_whole_chain_goes_through_every_level(name):
    """Where steps are small, x_k = a m + sqrt(a^2 s^2 + 1 - a^2) z with one z."""
    schedule, n = schedules.make_schedule("vp", 50), 400
    levels = schedules.refine(schedule, GRIDS[name](schedule, n))
    a = np.append(levels.signal[::-1], 1.0)
    spread = np.sqrt(a**2 * S**2 + 1 - a**2)
    start = np.array([-1.0, 0.0, 2.0])
    expected = a * M + spread * ((start - a[0] * M) / spread[0])[:, None]
    sampler = samplers.make_sampler(schedule, name, n)
    draws = reverse.ChainDraws(jnp.asarray(start), jnp.zeros((0, 3)))
    chain = sampler.sample(best_network(schedule), draws, whole=True)
    np.testing.assert_allclose(chain.T, expected, atol=0.02)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_whole_chain_ends_in_the_sample(name):
    schedule = schedules.make_schedule("vp", 6)
    clip = constraints.clip_to(-jnp.ones(2), jnp.ones(2))
    clamp = constraints.inpaint(np.array([True, False]), jnp.full(2, 0.3))
    sampler = samplers.make_sampler(schedule, name, 4, constraint=clip)
    draws = reverse.draw_chain(jax.random.key(0), sampler.draws, (5, 2), jnp.float64)

    def sample(draws, whole):
        network = best_network(schedule)
        return sampler.sample(network, draws, clamp=clamp, whole=whole)

    run = jax.jit(sample, static_argnums=1)
    chain = run(draws, True)
    assert chain.shape == (5, 5, 2)
    np.testing.assert_array_equal(chain[-1], run(draws, False))
    np.testing.assert_array_equal(chain[0], clamp(draws.start))


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
