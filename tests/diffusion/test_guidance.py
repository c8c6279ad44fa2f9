"""Guidance against laws that are known: tilted Gaussians and a discrete energy.

Data are N(m, s^2).  The reward J(x) = c x tilts them to N(m + c s^2, s^2), and the
exact gradient at noise level k is that of log E[exp(c x_0) | x_k], which is c times the
slope of the best denoiser.
"""

from __future__ import annotations

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import (
    constraints,
    flow,
    guidance,
    process,
    reverse,
    samplers,
    schedules,
)
from jdql.diffusion.chain import Chain

M, S, C = 0.7, 0.3, 3.0
TILTED = M + C * S**2  # 0.970


def slope(schedule):
    return schedule.signal * S**2 / (schedule.signal**2 * S**2 + schedule.noise**2)


def gaussian(schedule, mean=M):
    """The best denoiser of N(mean, s^2)."""

    def denoise(x, k):
        a = process.at(schedule.signal, k, x)
        return mean + process.at(slope(schedule), k, x) * (x - a * mean)

    return denoise


def exact_gradient(schedule):
    return lambda x, k: C * process.at(slope(schedule), k, x) * jnp.ones_like(x)


def chain_mean(schedule, guide, predict=None, constraint=constraints.unconstrained):
    """The end of the chain without noise: its mean, as everything here is affine."""
    sampler = samplers.make_sampler(
        schedule, "ancestral", parameterisation=process.X0, constraint=constraint
    )
    draws = reverse.ChainDraws(jnp.zeros((1, 1)), jnp.zeros((schedule.steps, 1, 1)))
    predict = predict or gaussian(schedule)
    return jax.jit(lambda d: sampler.sample(predict, d, guide))(draws)[0, 0].item()


def chain_of(schedule):
    """What a sampler that visits every step tells a guide."""
    return Chain(
        schedule,
        np.arange(schedule.steps),
        denoiser=lambda predict: predict,
        steps=reverse.reverse_steps(schedule),
    )


def guided(guide, schedule, mean=M):
    """The guided denoiser of N(mean, s^2)."""
    return guide(gaussian(schedule, mean), chain_of(schedule))


def noisy_batch():
    x = jax.random.normal(jax.random.key(0), (6, 2))
    return x, jnp.array([0, 1, 2, 3, 4, 0])


# Classifier guidance ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp", "linear"])
def test_score_guidance_reaches_the_exact_tilt(name):
    schedule = schedules.make_schedule(name, 1000)
    guide = guidance.classifier(exact_gradient(schedule))
    assert 0.968 < chain_mean(schedule, guide) < 0.9705


def test_score_guidance_is_the_denoiser_of_the_tilted_law():
    """For a linear reward exactly, at every step: the weight tilts by weight c s^2."""
    schedule = schedules.make_schedule("vp", 5)
    x, k = noisy_batch()
    guide = guidance.classifier(exact_gradient(schedule), 0.5)
    expected = gaussian(schedule, M + 0.5 * C * S**2)(x, k)
    np.testing.assert_allclose(
        guided(guide, schedule)(x, k), expected, rtol=2e-5, atol=1e-6
    )


def test_energy_guidance_follows_the_gradient_of_the_energy():
    schedule = schedules.make_schedule("vp", 5)
    x, k = noisy_batch()

    def energy_of(x, k):
        return C * jnp.sum(process.at(slope(schedule), k, x) * x, axis=-1)

    by_energy = guidance.energy(energy_of, 2.0)
    by_gradient = guidance.classifier(exact_gradient(schedule), 2.0)
    np.testing.assert_allclose(
        guided(by_energy, schedule)(x, k),
        guided(by_gradient, schedule)(x, k),
        rtol=1e-6,
    )


def mean_recursion(schedule, weight):
    """mu + weight r^2 g(mu), written with DDPM's mean and posterior variance."""
    abar = np.append(1.0, schedule.signal**2)
    mean, gain = 0.0, slope(schedule)
    for k in range(schedule.steps - 1, -1, -1):
        now, before, beta = abar[k + 1], abar[k], schedule.beta[k]
        x0 = M + gain[k] * (mean - schedule.signal[k] * M)
        mean = (
            beta * np.sqrt(before) / (1 - now) * x0
            + (1 - before) * np.sqrt(1 - beta) / (1 - now) * mean
        )
        g = C * gain[k - 1] if k > 0 else 0.0
        mean += weight * beta * (1 - before) / (1 - now) * g
    return mean


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_mean_guidance_follows_its_recursion(weight):
    schedule = schedules.make_schedule("vp", 7)
    guide = guidance.mean(exact_gradient(schedule), weight)
    got = chain_mean(schedule, guide)
    assert got == pytest.approx(mean_recursion(schedule, weight), rel=1e-5)


def test_mean_guidance_evaluates_the_gradient_at_the_mean():
    schedule = schedules.make_schedule("vp", 5)
    steps = reverse.reverse_steps(schedule)
    draws = reverse.ChainDraws(jnp.full((1, 1), 0.4), jnp.zeros((5, 1, 1)))
    seen = []

    def gradient(x, k):
        jax.debug.callback(lambda x, k: seen.append((float(x[0, 0]), int(k))), x, k)
        return jnp.zeros_like(x)

    denoiser = guided(guidance.mean(gradient), schedule)
    reverse.reverse_chain(denoiser, steps, draws)
    jax.effects_barrier()
    x0 = gaussian(schedule)(draws.start, jnp.array(4))
    mu = steps.x0[0] * x0[0, 0] + steps.xk[0] * 0.4
    assert seen[0] == (pytest.approx(mu.item(), rel=1e-5), 3)


def test_mean_guidance_tends_to_the_exact_tilt():
    schedule = schedules.make_schedule("cosine", 1000)
    guide = guidance.mean(exact_gradient(schedule))
    assert chain_mean(schedule, guide) == pytest.approx(TILTED, abs=4e-3)


@pytest.mark.parametrize(("K", "end"), [(20, 1.299), (100, 1.626), (1000, 1.743)])
def test_diffuser_guidance_is_no_exact_tilt(K, end):
    schedule = schedules.make_schedule("cosine", K)
    guide = guidance.diffuser(lambda x, k: jnp.full_like(x, C))
    assert chain_mean(schedule, guide) == pytest.approx(end, abs=1e-3)


def test_diffuser_guidance_follows_its_recursion():
    """Two moves before each step, none below step 2, and x0_hat clipped before them."""
    schedule = schedules.make_schedule("cosine", 9)
    steps = reverse.reverse_steps(schedule)
    guide = guidance.diffuser(lambda x, k: C * (1 + x), 0.7, repeats=2, stop=2)
    x, gain, clipped = 0.0, slope(schedule), 0
    for i, k in enumerate(steps.k):
        for _ in range(2):
            x += 0.7 * steps.noise[i] ** 2 * C * (1 + x) if k >= 2 else 0.0
        x0 = M + gain[k] * (x - schedule.signal[k] * M)
        clipped += x0 > 0.9
        x = steps.x0[i] * min(x0, 0.9) + steps.xk[i] * x
    assert 0 < clipped < 9
    clip = constraints.clip_to(jnp.array(-9.0), jnp.array(0.9))
    got = chain_mean(schedule, guide, constraint=clip)
    assert got == pytest.approx(min(x, 0.9), rel=1e-4)


def test_diffuser_guidance_without_a_move_is_refused():
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        guidance.diffuser(lambda x, k: x, repeats=0)


# Classifier-free guidance -------------------------------------------------------------

U, CONDITION = -0.2, 0.7  # with weight 2.2: -0.2 + 2.2 * 0.9 = 1.780


def stacked(schedule):
    def denoise(x, k):
        conditional = gaussian(schedule, CONDITION)(x[1], k if k.ndim == 0 else k[1])
        return jnp.stack(
            [gaussian(schedule, U)(x[0], k if k.ndim == 0 else k[0]), conditional]
        )

    return denoise


def test_classifier_free_guidance_of_gaussians_is_a_gaussian():
    """N(u + w (c - u), s^2): even the denoiser is that law's, at every step."""
    schedule = schedules.make_schedule("cosine", 40)
    guide = guidance.classifier_free(gaussian(schedule, U), 2.2)
    x, k = noisy_batch()
    np.testing.assert_allclose(
        guided(guide, schedule, CONDITION)(x, k),
        gaussian(schedule, 1.780)(x, k),
        rtol=1e-4,
        atol=1e-5,
    )
    for way, predict in (
        (guide, gaussian(schedule, CONDITION)),
        (guidance.classifier_free_stacked(2.2), stacked(schedule)),
    ):
        end = chain_mean(schedule, way, predict)
        assert end == pytest.approx(1.780, abs=2e-3)


def test_weights_one_and_zero_are_the_denoisers_to_the_bit():
    schedule = schedules.make_schedule("vp", 5)
    unconditional, conditional = gaussian(schedule, U), gaussian(schedule, CONDITION)
    x, k = noisy_batch()
    for w, expected in ((1.0, conditional), (0.0, unconditional)):
        guide = guidance.classifier_free(unconditional, w)
        actual = guided(guide, schedule, CONDITION)(x, k)
        np.testing.assert_array_equal(actual, expected(x, k))
        both = unconditional(x, k), conditional(x, k)
        traced = jax.jit(guidance.mixture)(*both, w)
        np.testing.assert_array_equal(traced, expected(x, k))


def test_guidance_is_linear_in_the_weight():
    schedule = schedules.make_schedule("vp", 5)
    x, k = noisy_batch()

    def at(w):
        guide = guidance.classifier_free(gaussian(schedule, U), w)
        return guided(guide, schedule, CONDITION)(x, k)

    np.testing.assert_allclose(at(3.0) - at(2.0), at(1.0) - at(0.0), atol=1e-5)


@pytest.mark.parametrize("one_step", [True, False])
def test_one_stacked_call_is_the_same(one_step):
    schedule = schedules.make_schedule("vp", 5)
    x, k = noisy_batch()
    k = jnp.array(3) if one_step else k
    pair = guidance.classifier_free(gaussian(schedule, U), 1.7)
    one = guidance.classifier_free_stacked(1.7)
    np.testing.assert_allclose(
        one(stacked(schedule), chain_of(schedule))(x, k),
        guided(pair, schedule, CONDITION)(x, k),
        rtol=1e-6,
    )


def of_law(schedule, mean, deviation):
    """The best denoiser of independent N(mean_i, deviation_i^2)."""
    mean, variance = jnp.array(mean), jnp.array(deviation) ** 2

    def denoise(x, k):
        a, s = (process.at(c, k, x) for c in (schedule.signal, schedule.noise))
        return mean + a * variance / (a**2 * variance + s**2) * (x - a * mean)

    return denoise


def rows_of(*denoisers):
    """One denoiser of stacked rows."""

    def denoise(x, k):
        each = [k] * len(x) if k.ndim == 0 else k
        rows = zip(denoisers, x, each, strict=True)
        return jnp.stack([one(x, k) for one, x, k in rows])

    return denoise


def test_conditions_on_what_is_independent_compose_to_both():
    """One says where the first coordinate is and one where the second: a product.

    Without a condition both are N(0, 1); the denoiser of both conditions is exact at
    every noise level, since the scores of independent coordinates add.
    """
    schedule = schedules.make_schedule("cosine", 5)
    x, k = noisy_batch()
    rows = rows_of(
        of_law(schedule, (0.0, 0.0), (1.0, 1.0)),
        of_law(schedule, (0.6, 0.0), (0.2, 1.0)),
        of_law(schedule, (0.0, -0.5), (1.0, 0.1)),
    )
    both = of_law(schedule, (0.6, -0.5), (0.2, 0.1))
    for steps in (k, jnp.array(2)):
        guide = guidance.classifier_free_stacked(1.0, 1.0)
        found = guide(rows, chain_of(schedule))(x, steps)
        np.testing.assert_allclose(found, both(x, steps), atol=1e-5)


def test_a_condition_of_negative_weight_is_kept_away_from():
    """Means of one spread add: -0.2 + 1.0 (0.7 + 0.2) - 0.5 (0.4 + 0.2) = 0.4."""
    schedule = schedules.make_schedule("cosine", 5)
    x, k = noisy_batch()
    rows = rows_of(*(gaussian(schedule, mean) for mean in (U, CONDITION, 0.4)))
    found = guidance.classifier_free_stacked(1.0, -0.5)(rows, chain_of(schedule))(x, k)
    np.testing.assert_allclose(found, gaussian(schedule, 0.4)(x, k), atol=1e-5)


def test_as_many_weights_as_conditions_are_needed():
    schedule = schedules.make_schedule("vp", 5)
    with pytest.raises(ValueError, match="takes a weight for each, got none"):
        guidance.classifier_free_stacked()

    def two(x, k):
        return x[:2]

    guide = guidance.classifier_free_stacked(1.0, 2.0)
    with pytest.raises(ValueError, match="make 3 rows, but the network gives 2"):
        guide(two, chain_of(schedule))(*noisy_batch())


def test_mixing_denoisers_is_mixing_predictions_of_noise():
    """Through a sampler whose networks predict noise."""
    schedule = schedules.make_schedule("vp", 5)
    sampler = samplers.make_sampler(schedule, "ddim")
    draws = reverse.draw_chain(jax.random.key(0), 0, (6, 2))

    def noise_of(mean):
        denoise = gaussian(schedule, mean)
        return lambda x, k: process.epsilon_from_x0(schedule, x, k, denoise(x, k))

    def mixed(x, k):
        return guidance.mixture(noise_of(U)(x, k), noise_of(CONDITION)(x, k), 2.2)

    guide = guidance.classifier_free(noise_of(U), 2.2)
    np.testing.assert_allclose(
        sampler.sample(noise_of(CONDITION), draws, guide),
        sampler.sample(mixed, draws),
        rtol=1e-5,
        atol=1e-5,
    )


def arms(schedule, chance):
    """The best denoiser of N(0.6, 0.05^2) with this chance, else N(-0.6, 0.05^2)."""

    def denoise(x, k):
        a, n = (process.at(table, k, x) for table in (schedule.signal, schedule.noise))
        variance = (a * 0.05) ** 2 + n**2
        gain = a * 0.05**2 / variance
        odds = jnp.log(chance / (1 - chance)) + 2 * 0.6 * a * x / variance
        up = jax.nn.sigmoid(odds)
        return (2 * up - 1) * 0.6 * (1 - gain * a) + gain * x

    return denoise


def test_a_weight_raises_the_chance_of_an_arm_to_its_power():
    """p(a | good)^w p(a)^(1 - w): odds 0.65 : 0.35 become 0.65^w : 0.35^w."""
    schedule = schedules.make_schedule("vp", 40)
    sampler = samplers.make_sampler(schedule, "ddim", parameterisation=process.X0)
    quantiles = (statistics.NormalDist().inv_cdf((i + 0.5) / 1000) for i in range(1000))
    start = jnp.array(list(quantiles))[:, None]
    draws = reverse.ChainDraws(start, jnp.zeros((0, 1000, 1)))

    def end(w):
        guide = guidance.classifier_free(arms(schedule, 0.5), w)
        return sampler.sample(arms(schedule, 0.65), draws, guide)

    weights = np.array([0.0, 1.0, 2.0, 3.0])
    ends = jax.jit(jax.vmap(end))(jnp.asarray(weights))
    share = np.mean(ends[..., 0] > 0, axis=1)
    expected = 0.65**weights / (0.65**weights + 0.35**weights)
    np.testing.assert_allclose(share, expected, atol=0.01)
    assert jnp.mean(jnp.abs(jnp.abs(ends) - 0.6) < 0.2) > 0.98


# Chains -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variance", "n"),
    [
        *((name, "posterior", 3) for name in samplers.SAMPLERS if name != "ancestral"),
        ("ancestral", "deterministic", 3),
        ("ancestral", "posterior", 1),
    ],
)
@pytest.mark.parametrize("kind", ["mean", "diffuser"])
def test_guides_of_a_step_are_refused_where_steps_have_no_variance(
    kind, name, variance, n
):
    schedule = schedules.make_schedule("vp", 5)
    sampler = samplers.make_sampler(schedule, name, n, variance=variance)
    draws = reverse.draw_chain(jax.random.key(0), sampler.draws, (2, 1))
    guide = getattr(guidance, kind)(lambda x, k: x)
    with pytest.raises(ValueError, match=f"{kind} guidance scales by the variance"):
        sampler.sample(gaussian(schedule), draws, guide)


def test_flows_refuse_guides_that_need_a_signal_or_a_variance():
    start = jnp.zeros((2, 1))
    for kind, message in (
        ("classifier", "this chain starts at signal 0"),
        ("mean", "mean guidance scales by the variance"),
    ):
        guide = getattr(guidance, kind)(lambda x, k: x)
        with pytest.raises(ValueError, match=message):
            flow.euler(lambda x, t: -x, start, 3, guide=guide)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_guide_is_told_of_the_chain(name):
    """A guide may be any function; this one changes nothing, not even by clipping."""
    schedule, told = schedules.make_schedule("vp", 9), []
    low, high = jnp.array(-0.1), jnp.array(0.2)
    clamp = constraints.inpaint(np.array([True, False]), np.array([0.7, 0.0]))
    sampler = samplers.make_sampler(
        schedule,
        name,
        4,
        constraint=constraints.clip_to(low, high),
        parameterisation=process.X0,
    )

    def guide(denoiser, chain):
        told.append((denoiser, chain))
        return denoiser

    def predict(x, k):
        return jnp.full_like(x, k)

    draws = reverse.draw_chain(jax.random.key(0), sampler.draws, (3, 2))
    x = sampler.sample(predict, draws, guide, clamp)
    np.testing.assert_allclose(x, np.tile([0.7, 0.0], (3, 1)))

    (denoiser, chain), x = told[0], jnp.ones((3, 2))
    grid = {"dpmpp_1": "log_snr", "dpmpp_2m": "log_snr", "edm_heun": "karras"}
    grid = grid.get(name, "flow" if name == "flow" else "even")
    k = getattr(schedules, f"{grid}_grid")(schedule, 4)
    np.testing.assert_allclose(chain.k, k)
    np.testing.assert_allclose(
        chain.levels.signal, schedules.refine(schedule, k).signal
    )
    for i in range(4):
        assert float(chain.step(jnp.array(i))) == pytest.approx(k[i])
        free = chain.denoiser(predict)(x, jnp.array(i))
        np.testing.assert_allclose(free, np.full((3, 2), k[i]), rtol=1e-6)
        held = chain.constrain(denoiser)(x, jnp.array(i))
        clipped = [0.7, min(k[i], 0.2)]
        np.testing.assert_allclose(held, np.tile(clipped, (3, 1)), rtol=1e-6)
    np.testing.assert_allclose(chain.clamp(x), np.tile([0.7, 1.0], (3, 1)))
    assert (chain.steps is None) == (name in ("dpmpp_2m", "edm_heun"))


@pytest.mark.parametrize("order", [1, -1])
def test_a_composition_clips_between_estimates_and_moves_in_any_order(order):
    """One step by hand: x0_hat = min(1 + 0.5, 1.2), its mean moved by r^2 times 10."""
    levels = schedules.make_schedule("vp", 2)
    steps = reverse.reverse_steps(levels)
    chain = Chain(
        levels,
        np.array([3, 7]),  # the steps of the two levels
        denoiser=lambda predict: predict,
        constrain=lambda d: constraints.constrain(d, lambda x: jnp.minimum(x, 1.2)),
        steps=steps,
    )
    seen = []

    def gradient(x, k):
        seen.append(int(k))
        return jnp.full_like(x, 10.0)

    scale = levels.noise[1] ** 2 / levels.signal[1]
    guides = (
        guidance.classifier(lambda x, k: 0.5 / scale * jnp.ones_like(x)),
        guidance.mean(gradient),
        guidance.diffuser(lambda x, k: jnp.zeros_like(x)),
    )
    guide = guidance.compose(*guides[::order])
    x0 = guide(lambda x, i: jnp.ones_like(x), chain)(jnp.zeros((1, 1)), jnp.array(1))
    expected = 1.2 + steps.noise[0] ** 2 / steps.x0[0] * 10
    assert x0.item() == pytest.approx(expected, rel=1e-5)
    assert seen == [3]  # the step that the mean belongs to


# Gradients and energies ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classifier", "mean", "diffuser"])
def test_no_gradient_passes_through_the_guidance(kind):
    """A chain's gradient is that of the chain whose guidance is a recorded constant."""
    schedule = schedules.make_schedule("vp", 2)
    sampler = samplers.make_sampler(
        schedule, "ancestral", parameterisation=process.X0, unroll=2
    )
    draws = reverse.draw_chain(jax.random.key(1), 2, (1, 1))

    def end(theta, strength, gradient):
        guide = getattr(guidance, kind)(lambda x, k: strength * gradient(x, k))
        return sampler.sample(lambda x, k: jnp.tanh(theta * x), draws, guide)[0, 0]

    recorded = []

    def record(x, k):
        recorded.append(jnp.sin(3 * x))
        return recorded[-1]

    with jax.disable_jit():
        end(0.8, 1.0, record)
        values = iter(recorded)
        frozen = jax.grad(end)(0.8, 1.0, lambda x, k: next(values))
        by_theta, by_strength = jax.grad(end, (0, 1))(
            0.8, 1.0, lambda x, k: jnp.sin(3 * x)
        )
    assert by_theta.item() == pytest.approx(frozen.item(), rel=1e-5)
    assert by_strength.item() == 0.0


P_X0 = np.array([0.5, 0.3, 0.2])
VALUES = np.array([0.0, 1.0, 2.0])  # beta Q of the three clean actions
P_NOISY = np.array([[0.7, 0.2, 0.1, 0.0], [0.1, 0.5, 0.2, 0.2], [0.0, 0.1, 0.3, 0.6]])


def expected_contrastive_loss(f, weights_of):
    """The loss in expectation: every group of two, weighted by its probability."""
    x0 = np.stack(np.meshgrid(*[np.arange(3)] * 2, *[np.arange(4)] * 2), -1)
    x0, noisy = np.split(x0.reshape(-1, 4), 2, axis=1)
    probability = np.prod(P_X0[x0] * P_NOISY[x0, noisy], axis=1)
    assert probability.sum() == pytest.approx(1)
    weights = weights_of(jnp.asarray(VALUES[x0]))
    scaled = weights * probability[:, None] * len(x0)  # the loss is linear in them
    return guidance.contrastive_energy_loss(f[noisy], scaled)


def test_the_contrastive_energy_is_the_exact_one():
    """The convex loss is stationary at log E[exp(beta Q) | x_k] plus a constant."""
    joint = P_X0[:, None] * P_NOISY
    exact = jnp.asarray(np.log(np.exp(VALUES) @ joint / joint.sum(0)))
    gradient = jax.jit(jax.grad(lambda f: expected_contrastive_loss(f, jnp.exp)))
    np.testing.assert_allclose(gradient(exact + 5.0), 0.0, atol=2e-6)
    curvature = np.linalg.eigvalsh(jax.jacfwd(gradient)(exact))
    assert curvature[0] == pytest.approx(0, abs=1e-5)  # the constant is free
    assert curvature[1] > 0.05  # nothing else is
    f = jax.jit(lambda f: jax.lax.fori_loop(0, 300, lambda i, f: f - gradient(f), f))(
        jnp.zeros(4)
    )
    np.testing.assert_allclose(jax.nn.softmax(f), jax.nn.softmax(exact), atol=1e-4)


def test_normalising_small_groups_is_biased():
    joint = P_X0[:, None] * P_NOISY
    exact = jnp.asarray(np.log(np.exp(VALUES) @ joint / joint.sum(0)))
    gradient = jax.jit(
        jax.grad(lambda f: expected_contrastive_loss(f, jax.nn.softmax))
    )(exact)
    assert jnp.abs(gradient).max() > 0.01
