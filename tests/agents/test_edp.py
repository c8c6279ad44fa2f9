"""EDP: its rules by hand, and the order of its steps."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.launch.resolve import resolve
from jdql.agents import edp
from jdql.diffusion import reverse, schedules
from jdql.networks.mlp import MLP, Critic, NoiseNetwork
from jdql.types import DataSpec
from tests.agents import toys
from tests.agents.programs import once

SPEC = DataSpec(3, 2, (-1.0, -1.0), (1.0, 1.0))
SMALL = dataclasses.replace(
    edp.Config().tiny(),
    hidden=(8, 8),
    step_dim=4,
    batch_size=8,
    diffusion_steps=4,
    sample_steps=2,
    crr_actions=10,
    grad_norm=1e-3,
    tau=0.5,
    ema_decay=0.5,
    ema_every=2,
    ema_start=3,
)
RULES = ("td3", "crr", "iql")


# The agent. ---------------------------------------------------------------------------

CRITIC, VALUE = Critic(SMALL.hidden), MLP(SMALL.hidden, 1)
NETWORK = NoiseNetwork(2, SMALL.hidden, SMALL.step_dim)


@functools.cache
def agent_of(rule, **changes):
    return edp.make(dataclasses.replace(SMALL, rule=rule, **changes), SPEC)


PARTS = {rule: edp.build(dataclasses.replace(SMALL, rule=rule), SPEC) for rule in RULES}


@functools.cache
def start(rule):
    """A state whose networks differ from their averages, and noise for four updates."""
    draw = once(jax.vmap(agent_of(rule).draw))
    return toys.initial(agent_of(rule)), draw(jax.random.split(jax.random.key(1), 4))


@functools.cache
def updated(rule):
    """The start, all later states, and the first of them with its draws and metrics."""
    agent, (state, draws) = agent_of(rule), start(rule)

    def step(state, draws):
        new, metrics = agent.update_step(state, toys.batch(), draws)
        return new, (new, metrics)

    _, (states, metrics) = once(lambda s, d: jax.lax.scan(step, s, d))(state, draws)
    first = jax.tree.map(lambda leaf: leaf[0], (states, draws, metrics))
    return state, states, *first


def estimate_of(state, draws):
    """a0_hat from the formula, and the error of the noise."""
    schedule, data = schedules.make_schedule("vp", 4), toys.batch()
    signal = schedule.signal[np.asarray(draws.k)][:, None].astype(np.float32)
    noise = schedule.noise[np.asarray(draws.k)][:, None].astype(np.float32)
    a_k = signal * data.action + noise * draws.noise
    epsilon = NETWORK.apply(state.actor.params, a_k, draws.k, data.observation)
    a0 = jnp.clip(a_k / signal - noise / signal * epsilon, -1, 1)
    return a0, jnp.mean((epsilon - draws.noise) ** 2, axis=-1)


@functools.cache
def by_hand(rule):
    """The losses of the first update, from the formulas."""
    state, _, after, draws, _ = updated(rule)
    data = toys.batch()

    def q_of(params, observation, action):
        return CRITIC.apply(params, observation, action)

    def v_of(params, observation):
        return VALUE.apply(params, observation)[..., 0]

    def weight(a0):
        """Of CRR and IQL, which value the data's actions."""
        if rule == "crr":
            observation = jnp.broadcast_to(data.observation, (10, 8, 3))
            around = a0 + draws.baseline
            v = q_of(state.critic.params, observation, around).min(0).mean(0)
            q = q_of(state.critic.params, data.observation, data.action).min(0)
            return jnp.minimum(20, jnp.exp(q - v))
        q = q_of(state.critic.average, data.observation, data.action).min(0)
        v = v_of(after.value.params, data.observation)  # V has been updated already
        return jnp.minimum(100, jnp.exp(3 * (q - v)))

    def guide(a0):
        if rule == "td3":
            head = jnp.where(draws.coin > 0.5, 0, 1)
            q = q_of(state.critic.params, data.observation, a0)[head]
            return -2.0 * q.mean() / jnp.abs(q).mean()
        log_likelihood = -0.5 * jnp.sum((data.action - a0) ** 2, axis=-1)
        return -jnp.mean(weight(a0) * log_likelihood)

    def next_value():
        if rule == "iql":
            return v_of(after.value.params, data.next_observation)
        seen = data.next_observation
        action = PARTS[rule].actor.sample(state.actor.average, seen, draws.target)
        return q_of(state.critic.average, seen, action).min(0)

    @once
    def losses():
        a0, error = estimate_of(state, draws)
        target = data.reward + 0.99 * data.mask * next_value()
        q = q_of(state.critic.params, data.observation, data.action)
        found = {
            "bc_loss": error.mean(),
            "guide_loss": guide(a0),
            "actor_loss": error.mean() + guide(a0),
            "critic_loss": jnp.mean((q - target) ** 2, axis=-1).sum(),
        }
        if rule == "iql":
            gap = q_of(state.critic.average, data.observation, data.action).min(0)
            gap = gap - v_of(state.value.params, data.observation)
            found["value_loss"] = jnp.mean(jnp.where(gap > 0, 0.7, 0.3) * gap**2)
        return found

    return losses()


@pytest.mark.parametrize("rule", RULES)
def test_the_losses_by_hand(rule):
    *_, metrics = updated(rule)
    for name, expected in by_hand(rule).items():
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-4, err_msg=name)


def test_what_is_not_used_is_not_drawn():
    *_, draws, _ = updated("iql")
    assert draws.target.start.shape == (0, 2)
    assert draws.baseline.shape == (0, 8, 2)


def test_each_critic_clips_its_own_gradient():
    _, _, after, _, _ = updated("td3")
    mean = optax.tree_utils.tree_get(after.critic.opt, "mu")
    norms = jax.vmap(optax.tree.norm)(mean)
    np.testing.assert_allclose(norms, 0.1 * SMALL.grad_norm, rtol=1e-3)


def test_the_averaged_actor_follows_every_second_update_after_the_third():
    state, states, *_ = updated("td3")
    before = jax.tree.leaves(state.actor.average)[0]
    leaves = (states.actor.average, states.actor.params)
    average, actor = (jax.tree.leaves(tree)[0] for tree in leaves)
    for i in range(3):
        np.testing.assert_array_equal(average[i], before)
    np.testing.assert_allclose(average[3], 0.5 * before + 0.5 * actor[3], rtol=1e-5)


def test_the_target_critics_follow_the_new_critics():
    state, _, after, _, _ = updated("td3")
    expected = toys.between(state.critic.average, after.critic.params, SMALL.tau)
    toys.assert_near(after.critic.average, expected, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_the_policy_s_update_calls_its_network_once(rule):
    calls = 0

    def count(following, arguments, keywords, context):
        nonlocal calls
        calls += isinstance(context.module, NoiseNetwork)
        return following(*arguments, **keywords)

    agent, parts = agent_of(rule), PARTS[rule]
    state = jax.eval_shape(agent.init, jax.random.key(0))
    draws = jax.eval_shape(agent.draw, jax.random.key(0))
    gradient = jax.grad(edp.actor_loss, has_aux=True)
    with nn.intercept_methods(count):
        jax.eval_shape(
            lambda s, d: gradient(s.actor.params, parts, s, toys.batch(), d),
            state,
            draws,
        )
    assert calls == 1


@pytest.mark.parametrize("rule", ["crr", "iql"])
def test_the_critics_learn_nothing_from_weighing(rule):
    state, draws = start(rule)
    first = jax.tree.map(lambda leaf: leaf[0], draws)

    def loss(networks):
        params, average, value = networks
        judged = state._replace(
            critic=state.critic._replace(params=params, average=average),
            value=state.value._replace(params=value),
        )
        inputs = PARTS[rule], judged, toys.batch(), first
        return edp.actor_loss(state.actor.params, *inputs)[0]

    critic = state.critic
    gradient = once(jax.grad(loss))((critic.params, critic.average, state.value.params))
    assert optax.tree.norm(gradient) == 0


def test_acting_takes_the_best_candidate_of_each_state():
    agent = agent_of("td3", temperature=0.0)
    state, parts = start("td3")[0], PARTS["td3"]
    observations = jnp.asarray(
        np.random.default_rng(1).normal(size=(5, 3)), jnp.float32
    )
    learned = agent.learned(state)
    assert learned.actor is state.actor.params  # the online networks
    assert learned.critic is state.critic.params

    @once
    @jax.vmap
    def both(observation, key):
        action = toys.act(agent, learned, observation, key)[0]
        repeated = jnp.broadcast_to(observation, (4, 3))
        draws = reverse.draw_chain(jax.random.split(key)[0], 0, (4, 2))
        candidates = parts.actor.sample(state.actor.params, repeated, draws)
        q = CRITIC.apply(state.critic.params, repeated, candidates).min(0)
        return action, candidates, q

    actions, candidates, q = both(observations, jax.random.split(jax.random.key(5), 5))
    best = np.argmax(q, axis=1)
    np.testing.assert_allclose(actions, candidates[np.arange(5), best], atol=1e-6)
    assert len(set(best.tolist())) > 1


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
