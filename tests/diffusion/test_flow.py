"""Flow matching against Gaussian data, whose velocity is known.

For data N(m, s^2) the best estimate of x_0 at time t is affine in x_t, so Euler's
method is an affine recursion of mean and deviation; the test writes it out from the
posterior mean, which the code does not use.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import constraints, flow, guidance

M, S = 0.7, 0.3


def gain(t):
    """Slope of E[x_0 | x_t]: cov(x_0, x_t) / var(x_t)."""
    return t * S**2 / (t**2 * S**2 + (1 - t) ** 2)


def gaussian_denoiser(x, t):
    return M + gain(t) * (x - t * M)


def gaussian_velocity(x, t):
    """E[x_0 - noise | x_t], with both posterior means written out."""
    noise = (1 - t) * (x - t * M) / (t**2 * S**2 + (1 - t) ** 2)
    return gaussian_denoiser(x, t) - noise


def recursion(steps, m=M):
    mean, std = 0.0, 1.0
    for i in range(steps):
        t = i / steps
        share = 1 / (steps - i)  # of the way left, h / (1 - t)
        slope = 1 - share + share * gain(t)
        mean = (1 - share) * mean + share * (m + gain(t) * (mean - t * m))
        std = slope * std
    return mean, std


@pytest.mark.parametrize(("steps", "std"), [(5, 0.200), (10, 0.247), (50, 0.289)])
def test_euler_follows_the_recursion_of_gaussian_data(steps, std):
    def end(start):
        return flow.euler(gaussian_velocity, start, steps)[0]

    mean, slope = jax.value_and_grad(end)(jnp.zeros(1))
    expected = recursion(steps)
    np.testing.assert_allclose((mean, slope[0]), expected, rtol=1e-5)
    assert float(slope[0]) == pytest.approx(std, abs=5e-4)


def test_euler_converges_with_order_one():
    errors = [abs(recursion(n)[1] - S) for n in (100, 200, 400)]
    with jax.enable_x64(True):
        slopes = [
            jax.grad(lambda x, n=n: flow.euler(gaussian_velocity, x, n)[0])(
                jnp.zeros(1, jnp.float64)
            )[0]
            for n in (100, 200, 400)
        ]
    np.testing.assert_allclose(np.abs(np.array(slopes) - S), errors, rtol=1e-6)
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_euler_starts_at_noise_and_never_evaluates_the_end():
    seen = []

    def velocity(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return jnp.ones_like(x)

    end = flow.euler(velocity, jnp.array([[2.0, -1.0]]), 4)
    jax.effects_barrier()
    np.testing.assert_allclose(end, [[3.0, 0.0]], rtol=1e-6)
    assert sorted(seen) == [0.0, 0.25, 0.5, 0.75]


def test_loss_by_hand():
    x0 = jnp.array([[1.0, 0.0], [0.5, -0.5]])
    noise = jnp.array([[0.0, 2.0], [1.5, 0.5]])
    time = jnp.array([0.25, 1.0])
    # x_t = (0.25, 1.5), (0.5, -0.5); velocities (1, -2), (-1, -1)

    def predict(x, t):
        return x + t[:, None]

    # errors (0.5 - 1, 1.75 + 2), (1.5 + 1, 0.5 + 1)
    errors = np.array([(0.25 + 3.75**2) / 2, (2.5**2 + 1.5**2) / 2])
    loss = flow.flow_loss(predict, x0, time, noise)
    assert float(loss) == pytest.approx(errors.mean(), rel=1e-6)
    weighted = flow.flow_loss(predict, x0, time, noise, weights=jnp.array([3.0, 0.0]))
    assert float(weighted) == pytest.approx(1.5 * errors[0], rel=1e-6)


def test_loss_of_trajectories_with_held_entries_by_hand():
    """Shape [1, 2, 2]; the first entry is held at 0.5, and the steps are weighted."""
    x0 = jnp.array([[[0.5, 0.0], [1.0, -1.0]]])
    noise = jnp.array([[[9.0, 2.0], [0.0, 1.0]]])
    # x_t at t = 0.5: (0.5 held, 1), (0.5, 0); velocities (held, -2), (1, -2)
    clamp = constraints.inpaint(np.array([[True, False], [False, False]]), x0)
    loss = flow.flow_loss(
        lambda x, t: 2 * x,
        x0,
        jnp.array([0.5]),
        noise,
        weights=jnp.array([[1.0, 3.0]]),
        clamp=clamp,
    )
    assert float(loss) == pytest.approx((0 + 4**2 + 3 * 0**2 + 3 * 2**2) / 4)


def test_the_gaussian_velocity_minimises_the_loss():
    """Its loss is the mean posterior variance of x_0 - noise, and no affine change
    of it has a smaller one."""
    rng = np.random.default_rng(0)
    x0 = jnp.asarray(M + S * rng.normal(size=(200_000, 1)), jnp.float32)
    noise = jnp.asarray(rng.normal(size=x0.shape), jnp.float32)
    time = jnp.asarray(rng.random(len(x0)), jnp.float32)

    def loss(changes):
        def predict(x, t):
            a, b = changes
            return a * gaussian_velocity(x, t[:, None]) + b

        return flow.flow_loss(predict, x0, time, noise)

    t = (np.arange(100_000) + 0.5) / 100_000
    variance = t**2 * S**2 + (1 - t) ** 2  # of x_t
    covariance = t * S**2 - (1 - t)  # of x_0 - noise and x_t
    best = np.mean(S**2 + 1 - covariance**2 / variance)
    value, slope = jax.value_and_grad(loss)(jnp.array([1.0, 0.0]))
    assert float(value) == pytest.approx(best, rel=0.02)
    np.testing.assert_allclose(slope, 0.0, atol=0.01)


def test_velocity_and_denoiser_cycle():
    x = jnp.array([[0.3, -1.0], [2.0, 0.1], [0.0, 0.4]])
    t = jnp.array([0.0, 0.4, 0.95])
    wide = t[:, None]
    np.testing.assert_allclose(
        flow.denoiser(lambda x, t: gaussian_velocity(x, wide))(x, t),
        gaussian_denoiser(x, wide),
        rtol=1e-5,
        atol=1e-6,
    )
    back = flow.to_velocity(flow.denoiser(lambda x, t: gaussian_velocity(x, wide)))
    np.testing.assert_allclose(
        back(x, t), gaussian_velocity(x, wide), rtol=1e-4, atol=1e-5
    )


def test_clipping_the_denoiser_keeps_every_sample_within_bounds():
    to_bounds = constraints.clip_to(jnp.array([0.5]), jnp.array([0.8]))
    denoise = flow.denoiser(gaussian_velocity)
    clipped = flow.to_velocity(lambda x, t: to_bounds(denoise(x, t)))
    start = jnp.linspace(-3, 3, 21)[:, None]
    end = flow.euler(clipped, start, 5)
    # the last step of Euler's method ends in the last x0_hat
    assert end.min() >= 0.5 - 1e-6
    assert end.max() <= 0.8 + 1e-6


def test_levels_are_those_of_the_straight_path():
    levels = flow.levels(4)
    np.testing.assert_allclose(levels.signal, [0.75, 0.5, 0.25, 0.0])
    np.testing.assert_allclose(levels.noise, [0.25, 0.5, 0.75, 1.0])
    # noising from t' to t: scaled by t / t', the variances add up
    before = np.append(0.0, levels.noise[:-1])
    scale = levels.signal / np.append(1.0, levels.signal[:-1])
    np.testing.assert_allclose((scale * before) ** 2 + levels.beta, levels.noise**2)


def conditional_velocity(x, t):
    """Of the law N(M + 0.8 y, S^2), y being the second entry, which it reads."""
    shift = 0.8 * x[..., 1:]
    v = gaussian_velocity(x[..., :1] - t * shift, t) + shift
    return jnp.concatenate([v, jnp.full_like(v, 9.0)], axis=-1)


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_a_clamped_flow_follows_the_recursion_of_the_conditional_law(steps):
    """Of trajectories [B, H, A]: the network sees the second entry as it is given."""
    values = jnp.array([[0.0, -0.5], [0.0, 0.25], [0.0, 1.0]])
    clamp = constraints.inpaint(np.array([False, True]), values)
    start = jnp.stack([jnp.zeros((3, 2)), jnp.ones((3, 2))])
    run = jax.jit(lambda x: flow.euler(conditional_velocity, x, steps, clamp=clamp))
    end = np.asarray(run(start))
    for row, y in enumerate(np.asarray(values[:, 1])):
        mean, std = recursion(steps, M + 0.8 * y)
        expected = [mean, mean + std]
        np.testing.assert_allclose(end[:, row, 0], expected, atol=2e-6)
    np.testing.assert_array_equal(end[..., 1], np.stack(2 * [values[:, 1]]))


@pytest.mark.parametrize("clamped", [False, True])
def test_a_guided_flow_is_that_of_the_mixture(clamped):
    """Mixing x0_hat is mixing velocities; the times are the flow's own."""
    seen = []

    def other(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return jnp.sin(3 * x) + t

    def mixed(x, t):
        return guidance.mixture(other(x, t), gaussian_velocity(x, t), 1.7)

    clamp = constraints.inpaint(np.array([True, False]), np.array([0.3, 0.0]))
    clamp = clamp if clamped else None
    start = jnp.array([[0.2, -1.0], [1.5, 0.1]])
    guide = guidance.classifier_free(other, 1.7)
    end = flow.euler(gaussian_velocity, start, 4, guide=guide, clamp=clamp)
    jax.effects_barrier()
    assert sorted(seen) == [0.0, 0.25, 0.5, 0.75]
    expected = flow.euler(mixed, start, 4, clamp=clamp)
    np.testing.assert_allclose(end, expected, rtol=1e-5, atol=1e-6)


def test_a_flow_without_guide_and_clamp_is_the_program_of_euler():
    def plain(start):
        def step(x, t):
            return x + gaussian_velocity(x, t) / 3, None

        times = jnp.asarray(np.arange(3) / 3, start.dtype)
        return jax.lax.scan(step, start, times)[0]

    start = jnp.zeros((2, 1))
    ours = jax.make_jaxpr(lambda x: flow.euler(gaussian_velocity, x, 3))(start)
    assert str(ours) == str(jax.make_jaxpr(plain)(start))


def test_a_flow_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="flow_steps must be at least 1, got 0"):
        flow.euler(gaussian_velocity, jnp.zeros((1, 1)), 0)
