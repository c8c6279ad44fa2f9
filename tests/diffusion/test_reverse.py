"""The reverse chain against the recursion of Gaussian data, whose denoiser is known.

For data N(m, s^2) the best denoiser at (a, n) is affine in x, so mean and variance of
the chain follow a recursion that the test writes out from the DDPM formulas, which the
code does not use.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import constraints, process, reverse, schedules

M, S = 0.7, 0.3


def gaussian_denoiser(schedule):
    gain = schedule.signal * S**2 / (schedule.signal**2 * S**2 + schedule.noise**2)

    def denoise(x, k):
        a = process.at(schedule.signal, k, x)
        return M + process.at(gain, k, x) * (x - a * M)

    return denoise


def ddpm_recursion(schedule, variance):
    """Mean and variance of the end of the DDPM chain, by Ho et al.'s eqs. 6 and 7."""
    mean, var = 0.0, 1.0
    abar = np.append(1.0, schedule.signal**2)
    for k in range(schedule.steps - 1, -1, -1):
        a, now, before = schedule.signal[k], abar[k + 1], abar[k]
        beta = schedule.beta[k]
        gain = a * S**2 / (a**2 * S**2 + schedule.noise[k] ** 2)
        c_x0 = beta * np.sqrt(before) / (1 - now)
        c_xk = (1 - before) * np.sqrt(1 - beta) / (1 - now)
        posterior = beta * (1 - before) / (1 - now)
        noise = {"posterior": posterior, "beta": beta}[variance] if k > 0 else 0.0
        mean = c_x0 * (M + gain * (mean - a * M)) + c_xk * mean
        var = (c_x0 * gain + c_xk) ** 2 * var + noise
    return mean, np.sqrt(var)


def ddim_recursion(schedule):
    mean, std = 0.0, 1.0
    a = np.append(1.0, schedule.signal)
    n = np.append(0.0, schedule.noise)
    for k in range(schedule.steps, 0, -1):
        gain = a[k] * S**2 / (a[k] ** 2 * S**2 + n[k] ** 2)
        slope = a[k - 1] * gain + n[k - 1] / n[k] * (1 - a[k] * gain)
        x0 = M + gain * (mean - a[k] * M)
        mean = a[k - 1] * x0 + n[k - 1] / n[k] * (mean - a[k] * x0)
        std = slope * std
    return mean, std


def renoise_recursion(schedule):
    mean, var = 0.0, 1.0
    a = np.append(1.0, schedule.signal)
    n = np.append(0.0, schedule.noise)
    for k in range(schedule.steps, 0, -1):
        gain = a[k] * S**2 / (a[k] ** 2 * S**2 + n[k] ** 2)
        mean = a[k - 1] * (M + gain * (mean - a[k] * M))
        var = (a[k - 1] * gain) ** 2 * var + n[k - 1] ** 2
    return mean, np.sqrt(var)


def affine_law(schedule, steps):
    """Mean and deviation of the chain in code, read off its response to its noise."""
    denoiser = gaussian_denoiser(schedule)
    zero = reverse.ChainDraws(jnp.zeros((1, 1)), jnp.zeros((steps.steps, 1, 1)))

    def end(draws):
        return reverse.reverse_chain(denoiser, steps, draws)[0, 0]

    value, gradient = jax.jit(jax.value_and_grad(end))(zero)
    return float(value), sum(np.sum(np.square(g)) for g in gradient) ** 0.5


@pytest.mark.parametrize("name", ["vp", "cosine", "linear"])
@pytest.mark.parametrize("count", [2, 20])
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ancestral_sampling_follows_the_ddpm_recursion(name, count, variance):
    schedule = schedules.make_schedule(name, count)
    law = affine_law(schedule, reverse.reverse_steps(schedule, variance))
    np.testing.assert_allclose(law, ddpm_recursion(schedule, variance), atol=2e-5)


@pytest.mark.parametrize("count", [2, 5, 50])
def test_deterministic_sampling_follows_the_ddim_recursion(count):
    schedule = schedules.make_schedule("vp", count)
    law = affine_law(schedule, reverse.reverse_steps(schedule, "deterministic"))
    np.testing.assert_allclose(law, ddim_recursion(schedule), atol=2e-5)


def test_full_renoising_follows_its_recursion():
    schedule = schedules.make_schedule("vp", 5)
    law = affine_law(schedule, reverse.reverse_steps(schedule, "renoise"))
    np.testing.assert_allclose(law, renoise_recursion(schedule), atol=2e-5)


@pytest.mark.parametrize(
    ("variance", "count", "std"),
    [("posterior", 5, 0.142), ("beta", 5, 0.222), ("posterior", 50, 0.263)],
)
def test_few_steps_are_under_dispersed_as_computed_elsewhere(variance, count, std):
    schedule = schedules.make_schedule("vp", count)
    law = affine_law(schedule, reverse.reverse_steps(schedule, variance))
    assert law[1] == pytest.approx(std, abs=1e-3)


def test_many_steps_reach_the_data():
    schedule = schedules.make_schedule("vp", 1000)
    law = affine_law(schedule, reverse.reverse_steps(schedule, "posterior"))
    np.testing.assert_allclose(law, (M, S), atol=5e-3)


def test_samples_have_the_moments_of_the_recursion():
    schedule = schedules.make_schedule("vp", 5)
    steps = reverse.reverse_steps(schedule, "posterior")
    draws = reverse.draw_chain(jax.random.key(0), 5, (200_000, 1))
    x = reverse.reverse_chain(gaussian_denoiser(schedule), steps, draws)
    mean, std = ddpm_recursion(schedule, "posterior")
    assert x.mean().item() == pytest.approx(mean, abs=2e-3)
    assert x.std().item() == pytest.approx(std, abs=2e-3)


def test_an_unknown_variance_rule_is_refused():
    with pytest.raises(ValueError, match="must be one of"):
        reverse.reverse_steps(schedules.make_schedule("vp", 5), "gamma")


def test_a_chain_with_noise_needs_a_draw_for_each_step():
    schedule = schedules.make_schedule("vp", 5)
    start = reverse.draw_chain(jax.random.key(0), 0, (4, 1))
    denoiser = gaussian_denoiser(schedule)
    with pytest.raises(ValueError, match="5 steps was given 0 draws"):
        reverse.reverse_chain(denoiser, reverse.reverse_steps(schedule), start)
    steps = reverse.reverse_steps(schedule, "deterministic")
    alone = reverse.reverse_chain(denoiser, steps, start)
    drawn = reverse.ChainDraws(start.start, jnp.ones((5, 4, 1)))
    np.testing.assert_array_equal(alone, reverse.reverse_chain(denoiser, steps, drawn))


def test_a_constraint_of_the_chain_is_obeyed_by_every_step_but_not_by_the_start():
    schedule = schedules.make_schedule("vp", 5)
    steps = reverse.reverse_steps(schedule)
    denoiser = gaussian_denoiser(schedule)
    draws = reverse.draw_chain(jax.random.key(0), 5, (64, 1))
    clip = constraints.clip_to(jnp.array([-0.5]), jnp.array([0.6]))
    x, denoise = np.asarray(draws.start), jax.jit(denoiser)
    for k, c_x0, c_xk, noise, z in zip(*steps, np.asarray(draws.noises), strict=True):
        x = np.clip(c_x0 * denoise(x, k) + c_xk * x + noise * z, -0.5, 0.6)

    @functools.partial(jax.jit, static_argnums=1)
    def run(draws, constraint):
        return reverse.reverse_chain(denoiser, steps, draws, constraint=constraint)

    chain = run(draws, clip)
    np.testing.assert_allclose(chain, x, atol=1e-6)
    free = run(draws, constraints.unconstrained)
    assert np.abs(chain - free).max() > 0.1


def in_single_precision(betas):
    """The tables of the authors of Diffusion-QL: every operation rounded to float32.

    Returns a schedule, for reading x_0 off a prediction, and the table of the chain.
    """
    one, beta = np.float32(1), betas.astype(np.float32)
    abar = np.cumprod((one - beta).astype(np.float64)).astype(np.float32)
    before = np.append(one, abar[:-1])
    variance = beta * (one - before) / (one - abar)
    reciprocal, ratio = np.sqrt(one / abar), np.sqrt(one / abar - one)
    steps = reverse.ReverseSteps(
        np.arange(len(beta), dtype=np.int32)[::-1],
        (beta * np.sqrt(before) / (one - abar))[::-1],
        ((one - before) * np.sqrt(one - beta) / (one - abar))[::-1],
        np.sqrt(variance)[::-1],
    )
    return schedules.Schedule(beta, 1 / reciprocal, ratio / reciprocal), steps


def test_linear_chains_differ_from_the_authors_by_the_rounding_of_tables():
    """Their chain in numpy, against ours with our tables and with theirs."""
    schedule = schedules.make_schedule("linear", 20)
    rounded, table = in_single_precision(schedule.beta)
    draws = reverse.draw_chain(jax.random.key(0), 20, (500, 2))
    clip = constraints.clip_to(-jnp.ones(2), jnp.ones(2))

    def network(x, k):
        return jnp.sin(2 * x + 0.3 * k)

    x = np.array(draws.start)
    for k, c_x0, c_xk, noise, z in zip(*table, draws.noises, strict=True):
        a, s = rounded.signal[k], rounded.noise[k]
        x0 = np.clip(x / a - s / a * np.sin(2 * x + np.float32(0.3) * k), -1, 1)
        x = c_x0 * x0 + c_xk * x + noise * np.asarray(z)

    def differs(schedule, steps):
        denoiser = constraints.constrain(process.denoiser(schedule, network), clip)
        chain = jax.jit(lambda d: reverse.reverse_chain(denoiser, steps, d))
        return np.abs(chain(draws) - x).max()

    assert table.x0[-1] == pytest.approx(0.99983, abs=1e-5)
    assert 1e-4 < differs(schedule, reverse.reverse_steps(schedule)) < 2e-4
    assert differs(rounded, table) < 2e-6


def test_the_free_direction_is_that_of_the_estimate_before_clipping():
    """x' = a' clip(x0) + s' eps of the unclipped estimate, by hand, at every step."""
    schedule = schedules.make_schedule("vp", 4)
    steps = reverse.reverse_steps(schedule, "deterministic")
    clip = constraints.clip_to(jnp.array([-0.5]), jnp.array([0.6]))

    def denoiser(x, k):
        return jnp.sin(3 * x + k)

    free = reverse.keep_direction(denoiser, clip, schedule, steps)
    draws = reverse.draw_chain(jax.random.key(0), 0, (64, 1))
    a, s = np.append(1.0, schedule.signal), np.append(0.0, schedule.noise)
    x = np.array(draws.start)
    for k in range(4, 0, -1):
        x0 = np.sin(3 * x + (k - 1))
        x = a[k - 1] * np.clip(x0, -0.5, 0.6) + s[k - 1] * (x - a[k] * x0) / s[k]
    chain = jax.jit(lambda d: reverse.reverse_chain(free, steps, d))(draws)
    np.testing.assert_allclose(chain, x, atol=2e-6)
    clipped = constraints.constrain(denoiser, clip)
    turned = jax.jit(lambda d: reverse.reverse_chain(clipped, steps, d))(draws)
    assert np.abs(chain - turned).max() > 0.1


def test_unrolling_and_rematerialisation_change_no_value_and_no_gradient():
    schedule = schedules.make_schedule("vp", 5)
    steps = reverse.reverse_steps(schedule)
    draws = reverse.draw_chain(jax.random.key(0), 5, (16, 2))

    def end(weight, **options):
        def denoise(x, k):
            return jnp.tanh(weight * x) * process.at(schedule.signal, k, x)

        return jnp.sum(reverse.reverse_chain(denoise, steps, draws, **options) ** 2)

    plain = jax.jit(jax.value_and_grad(end))(0.8)
    for options in ({"unroll": 5}, {"unroll": 2, "remat": True}):
        other = jax.jit(jax.value_and_grad(lambda w, o=options: end(w, **o)))(0.8)
        np.testing.assert_allclose(plain, other, rtol=1e-6)


def test_the_gradient_through_the_chain_is_the_finite_difference():
    schedule = schedules.make_schedule("vp", 5)
    steps = reverse.reverse_steps(schedule)
    draws = reverse.draw_chain(jax.random.key(3), 5, (4, 2))

    def end(weight):
        def denoise(x, k):
            return jnp.sin(weight * x + k)

        return jnp.sum(reverse.reverse_chain(denoise, steps, draws))

    with jax.enable_x64(True):
        draws = jax.tree.map(lambda x: x.astype(jnp.float64), draws)
        h = 1e-6
        slope = (end(0.5 + h) - end(0.5 - h)) / (2 * h)
        assert float(jax.grad(end)(0.5)) == pytest.approx(float(slope), rel=1e-6)


def test_clipping_passes_the_gradient_inside_and_at_a_bound_only():
    x = jnp.array([-2.0, -1.0, 0.5, 1.0, 1.5])
    low, high = jnp.full(5, -1.0), jnp.full(5, 1.0)
    np.testing.assert_array_equal(
        constraints.clip(x, low, high), [-1.0, -1.0, 0.5, 1.0, 1.0]
    )
    gradient = jax.grad(lambda x: constraints.clip(x, low, high).sum())(x)
    np.testing.assert_array_equal(gradient, [0.0, 1.0, 1.0, 1.0, 0.0])


def test_a_constrained_chain_ends_within_the_bounds():
    schedule = schedules.make_schedule("vp", 5)
    clip = constraints.clip_to(jnp.array([-0.5]), jnp.array([0.6]))
    denoiser = constraints.constrain(gaussian_denoiser(schedule), clip)
    draws = reverse.draw_chain(jax.random.key(0), 5, (1000, 1))
    x = reverse.reverse_chain(denoiser, reverse.reverse_steps(schedule), draws)
    assert x.max().item() <= 0.6 + 1e-6
    assert x.min().item() >= -0.5 - 1e-6


def test_a_constraint_of_the_steps_holds_from_the_first_step_on():
    """Two steps by hand; the start is free, what the first step makes is clipped."""
    table = reverse.ReverseSteps(
        k=np.array([1, 0]),
        x0=np.array([0.5, 1.0]),
        xk=np.array([2.0, 0.25]),
        noise=np.array([1.0, 0.0]),
    )
    draws = reverse.ChainDraws(jnp.array([[2.0]]), jnp.array([[[-1.0]], [[9.0]]]))
    clip = constraints.clip_to(jnp.array([-1.0]), jnp.array([1.0]))
    x = reverse.reverse_chain(lambda x, k: x / 2, table, draws, constraint=clip)
    # 0.5 * 1 + 2 * 2 - 1 = 3.5, clipped to 1; 1 * 0.5 + 0.25 * 1 = 0.75
    assert x.item() == pytest.approx(0.75)
