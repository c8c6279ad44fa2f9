"""EDP: the action approximation in closed form, its rules by hand, its order."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from experiments.launch.resolve import resolve
from jdql.agents import edp
from jdql.diffusion import approximation, constraints, process, reverse, schedules
from jdql.networks.mlp import NoiseNetwork
from jdql.rl import resampling, weights
from jdql.types import DataSpec, Transition

SPEC = DataSpec(3, 2, (-1.0, -1.0), (1.0, 1.0))
SMALL = edp.Config(
    hidden=(8, 8),
    step_dim=4,
    batch_size=8,
    diffusion_steps=4,
    schedule="vp",
    sample_steps=2,
    candidates=4,
    grad_norm=1e-3,
    tau=0.5,
    ema_decay=0.5,
    ema_every=2,
    ema_start=3,
)
RULES = ("td3", "crr", "iql")


# The approximated action in closed form: data at +-1, a perfect network. -------------


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
    used = edp.shares(edp.Config(diffusion_steps=100, k_max=20), k)
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
    picks = jax.vmap(lambda key, i: i[resampling.choose(key, q[i], temperature)])(
        jax.random.split(choice_key, 4000), candidates
    )
    counts = np.bincount(picks, minlength=4)

    def p_value(shares):
        return stats.chisquare(counts, 4000 * shares / shares.sum()).pvalue

    assert p_value(p * np.exp(values / temperature)) > 0.01
    assert p_value(p) < 1e-6
    assert p_value(np.exp(values / temperature)) < 1e-6


# The agent. ---------------------------------------------------------------------------


@functools.cache
def agent_of(rule, **changes):
    return edp.make(dataclasses.replace(SMALL, rule=rule, **changes), SPEC)


@functools.cache
def parts_of(rule):
    return edp.build(dataclasses.replace(SMALL, rule=rule), SPEC)


def batch():
    rng = np.random.default_rng(0)
    return Transition(
        observation=jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
        action=jnp.asarray(rng.uniform(-0.9, 0.9, size=(8, 2)), jnp.float32),
        reward=jnp.asarray(rng.normal(size=8), jnp.float32),
        discount=jnp.asarray(rng.integers(0, 2, 8), jnp.float32),
        next_observation=jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
    )


@functools.cache
def start(rule):
    """A state whose networks differ from their targets, and noise for four updates."""
    agent = agent_of(rule)
    init, draw = jax.jit(agent.init), jax.jit(jax.vmap(agent.draw))
    state, other = init(jax.random.key(0)), init(jax.random.key(9))
    state = state._replace(actor_ema=other.actor, critic_target=other.critic)
    return state, draw(jax.random.split(jax.random.key(1), 4))


@functools.cache
def updated(rule):
    """The start, all later states, and the first of them with its draws and metrics."""
    agent, (state, draws) = agent_of(rule), start(rule)

    def step(state, draws):
        new, metrics = agent.update_step(state, batch(), draws)
        return new, (new, metrics)

    _, (states, metrics) = jax.jit(lambda s, d: jax.lax.scan(step, s, d))(state, draws)
    first = jax.tree.map(lambda leaf: leaf[0], (states, draws, metrics))
    return state, states, *first


@functools.cache
def crr_loss():
    """The start, its draws, CRR's losses, and their gradient for the critics."""
    state, draws = start("crr")
    draws = jax.tree.map(lambda leaf: leaf[0], draws)

    def loss(critic):
        judged = state._replace(critic=critic)
        return parts_of("crr").actor_loss(state.actor, judged, batch(), draws)

    (total, (bc, guide)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        state.critic
    )
    metrics = {"actor_loss": total, "bc_loss": bc, "guide_loss": guide}
    return state, draws, metrics, gradient


def q_of(params, observation, action):
    """Both heads of the critic, [2, ...]."""
    return edp.Critic(SMALL.hidden).apply(params, observation, action)


def v_of(params, observation):
    return edp.MLP(SMALL.hidden, 1).apply(params, observation)[..., 0]


def estimate_of(state, draws):
    """a0_hat from the formula, and the error of the noise."""
    schedule, data = schedules.make_schedule("vp", 4), batch()
    signal = schedule.signal[np.asarray(draws.k)][:, None].astype(np.float32)
    noise = schedule.noise[np.asarray(draws.k)][:, None].astype(np.float32)
    a_k = signal * data.action + noise * draws.noise
    network = NoiseNetwork(2, SMALL.hidden, SMALL.step_dim)
    epsilon = network.apply(state.actor, a_k, draws.k, data.observation)
    a0 = jnp.clip(a_k / signal - noise / signal * epsilon, -1, 1)
    return a0, jnp.mean((epsilon - draws.noise) ** 2, axis=-1)


def near(value, expected):
    np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_the_actor_s_loss_by_hand(rule):
    if rule == "crr":
        state, draws, metrics, _ = crr_loss()
    else:
        state, _, after, draws, metrics = updated(rule)
    data, (a0, error) = batch(), estimate_of(state, draws)
    log_likelihood = -0.5 * jnp.sum((data.action - a0) ** 2, axis=-1)
    if rule == "td3":
        head = 0 if draws.coin > 0.5 else 1
        q = q_of(state.critic, data.observation, a0)[head]
        guide = -2.0 * q.mean() / jnp.abs(q).mean()
    elif rule == "crr":
        observation = jnp.broadcast_to(data.observation, (10, 8, 3))
        v = q_of(state.critic, observation, a0 + draws.around).min(0).mean(0)
        q = q_of(state.critic, data.observation, data.action).min(0)
        guide = -jnp.mean(jnp.minimum(20, jnp.exp(q - v)) * log_likelihood)
    else:
        q = q_of(state.critic_target, data.observation, data.action).min(0)
        v = v_of(after.value, data.observation)  # V has been updated already
        guide = -jnp.mean(jnp.minimum(100, jnp.exp(3 * (q - v))) * log_likelihood)
    near(metrics["bc_loss"], error.mean())
    near(metrics["guide_loss"], guide)
    near(metrics["actor_loss"], error.mean() + guide)


@pytest.mark.parametrize("rule", ["td3", "iql"])
def test_the_critic_s_loss_by_hand(rule):
    state, _, after, draws, metrics = updated(rule)
    data = batch()
    if rule == "iql":
        value = v_of(after.value, data.next_observation)
        assert draws.target.start.shape == (0, 2)
    else:
        action = parts_of(rule).sample_action(
            state.actor_ema, data.next_observation, draws.target
        )
        value = q_of(state.critic_target, data.next_observation, action).min(0)
    target = data.reward + 0.99 * data.discount * value
    q = q_of(state.critic, data.observation, data.action)
    near(metrics["critic_loss"], jnp.mean((q - target) ** 2, axis=-1).sum())
    if rule == "iql":
        error = q_of(state.critic_target, data.observation, data.action).min(0)
        error = error - v_of(state.value, data.observation)
        near(
            metrics["value_loss"],
            jnp.mean(jnp.where(error > 0, 0.7, 0.3) * error**2),
        )


def test_each_critic_clips_its_own_gradient():
    _, _, after, _, _ = updated("td3")
    mean = optax.tree_utils.tree_get(after.critic_opt, "mu")
    norms = jax.vmap(optax.tree.norm)(mean)
    np.testing.assert_allclose(norms, 0.1 * SMALL.grad_norm, rtol=1e-3)


def test_the_averaged_actor_follows_every_second_update_after_the_third():
    state, states, *_ = updated("td3")
    before = jax.tree.leaves(state.actor_ema)[0]
    ema, actor = (jax.tree.leaves(t)[0] for t in (states.actor_ema, states.actor))
    for i in range(3):
        np.testing.assert_array_equal(ema[i], before)
    np.testing.assert_allclose(ema[3], 0.5 * before + 0.5 * actor[3], rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_the_policy_s_update_calls_its_network_once(rule):
    calls = 0

    def count(following, arguments, keywords, context):
        nonlocal calls
        calls += isinstance(context.module, NoiseNetwork)
        return following(*arguments, **keywords)

    agent, parts = agent_of(rule), parts_of(rule)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    draws = jax.eval_shape(agent.draw, jax.random.key(0))
    with nn.intercept_methods(count):
        jax.eval_shape(
            lambda s, d: jax.grad(parts.actor_loss, has_aux=True)(
                s.actor, s, batch(), d
            ),
            state,
            draws,
        )
    assert calls == 1


def test_the_critics_learn_nothing_from_weighing():
    *_, gradient = crr_loss()
    assert optax.tree.norm(gradient) == 0


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


def test_acting_takes_the_best_candidate_of_each_state():
    agent = agent_of("td3", temperature=0.0)
    state, parts = start("td3")[0], parts_of("td3")
    observations = jnp.asarray(
        np.random.default_rng(1).normal(size=(5, 3)), jnp.float32
    )
    keys = jax.random.split(jax.random.key(5), 5)
    policy = agent.policy(state)

    @jax.jit
    @jax.vmap
    def both(observation, key):
        action, _ = agent.act(policy, (), observation, key)
        repeated = jnp.broadcast_to(observation, (4, 3))
        draws = reverse.draw_chain(jax.random.split(key)[0], 0, (4, 2))
        candidates = parts.sample_action(state.actor, repeated, draws)
        q = q_of(state.critic, repeated, candidates).min(0)
        return action, candidates, q

    actions, candidates, q = both(observations, keys)
    best = np.argmax(q, axis=1)
    np.testing.assert_allclose(actions, candidates[np.arange(5), best], atol=1e-6)
    assert len(set(best.tolist())) > 1


def test_actions_of_the_data_are_kept_off_the_bounds():
    spec = SPEC._replace(action_low=(-1.0, 0.0), action_high=(1.0, 4.0))
    agent = edp.make(SMALL, spec)
    from jdql.data.dataset import from_arrays

    data = from_arrays(
        np.zeros((4, 3)),
        np.array([[1.0, 4.0]] * 2 + [[-1.0, 0.0]] * 2),
        np.zeros(4),
        np.zeros((4, 3)),
        np.zeros(4, bool),
    )
    action = agent.sample_batch(
        jax.random.key(0), jax.tree.map(jnp.asarray, data)
    ).action
    rows = np.unique(np.asarray(action), axis=0)
    np.testing.assert_allclose(rows, [[-0.999, 0.002], [0.999, 3.998]], atol=1e-6)


# Settings. ----------------------------------------------------------------------------


def test_the_scaled_linear_schedule():
    thousand = schedules.make_schedule("linear", 1000)
    scaled = schedules.make_schedule("scaled_linear", 1000)
    np.testing.assert_allclose(scaled.beta, thousand.beta, rtol=1e-12)
    hundred = schedules.make_schedule("scaled_linear", 100)
    np.testing.assert_allclose(hundred.beta[[0, -1]], [1e-3, 0.2])
    assert np.isfinite(schedules.make_schedule("scaled_linear", 21).noise).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "sac"}, "rule must be one of"),
        ({"likelihood": "exact"}, "likelihood must be one of"),
        ({"sampler": "dpm"}, "sampler must be one of"),
        ({"k_max": 0}, "k_max must be within"),
        ({"k_max": 5}, "k_max must be within"),
        ({"rule": "crr", "crr_actions": 0}, "crr_actions"),
        ({"schedule": "scaled_linear", "diffusion_steps": 20}, "at least 21.*vp"),
    ],
)
def test_bad_settings_are_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        edp.make(dataclasses.replace(SMALL, **changes), SPEC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "rule", "grad_norm", "reward", "every"),
    [
        ("edp", "td3", 1, "none", 10_000),
        ("edp:hopper_medium", "td3", 9, "none", 10_000),
        ("edp:halfcheetah_medium_expert", "td3", 7, "none", 10_000),
        ("edp:antmaze_large_play", "iql", 10, "minus_one", 10_000),
        ("edp:kitchen_complete", "iql", 9, "minmax", 10_000),
        ("edp:pen_human", "iql", 7, "minmax", 10_000),
    ],
)
def test_tasks_have_the_authors_settings(name, rule, grad_norm, reward, every):
    config = resolve(name)
    agent = config.agent
    assert (agent.rule, agent.grad_norm, config.data.reward) == (
        rule,
        grad_norm,
        reward,
    )
    assert config.eval.every == every
    assert (agent.lr, agent.diffusion_steps, agent.sample_steps) == (3e-4, 1000, 15)
    if rule == "iql":
        assert (agent.expectile, agent.inverse_temperature) == (0.7, 3.0)
        assert agent.max_q_backup is ("antmaze" in name)
    else:
        assert agent.eta == 2.0
