"""Flow Q-learning against its definition, written out with one joint loss."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdql.agents import fql
from jdql.data.dataset import from_arrays
from jdql.data.sampling import transitions
from jdql.networks.mlp import OneStepActor, VelocityNetwork, gelu_critic
from jdql.rl.improvement import self_normalised_q_loss
from jdql.types import DataSpec

SPEC = DataSpec(3, 2, (-1.0, -0.5), (1.0, 0.5))
HIDDEN, ALPHA, GAMMA, LR, FLOW_STEPS = (16, 16), 0.7, 0.9, 1e-3, 3


def data():
    """Forty steps: true ends every ten, time-outs between them."""
    rng = np.random.default_rng(0)
    i = np.arange(40)
    action = rng.uniform(-1, 1, (40, 2)) * np.array([1.0, 0.5])
    arrays = from_arrays(
        rng.normal(size=(40, 3)),
        action,
        rng.normal(size=40),
        rng.normal(size=(40, 3)),
        i % 10 == 9,
        timeout=i % 10 == 4,
    )
    return jax.tree.map(jnp.asarray, arrays)


@functools.cache
def agent_of(**settings):
    config = fql.Config(
        alpha=ALPHA,
        discount=GAMMA,
        lr=LR,
        critic_lr=LR,
        batch_size=8,
        flow_steps=FLOW_STEPS,
        hidden=HIDDEN,
        **settings,
    )
    return fql.make(config, SPEC)


def one_update(agent, seed=0):
    """A state some updates old, a batch, draws, and what an update makes of them."""
    keys = jax.random.split(jax.random.key(seed), 4)
    step = jax.jit(agent.update_step)
    state = jax.jit(agent.init)(keys[0])
    for key in keys[1:3]:
        state, _ = step(state, agent.sample_batch(key, data()), agent.draw(key))
    batch, draws = agent.sample_batch(keys[3], data()), agent.draw(keys[3])
    return state, batch, draws, *step(state, batch, draws)


def joint_loss(params, target_params, old, row, draws, size, normalise):
    """The authors' total loss; `old` are the parameters that are not differentiated.

    `row` holds flattened actions, the return, the factor of the bootstrap, the mask of
    the actions and the weight in the critic's loss.
    """
    flow, student = VelocityNetwork(size, HIDDEN), OneStepActor(size, HIDDEN)
    critic = gelu_critic(HIDDEN)
    bound = jnp.tile(jnp.array([1.0, 0.5]), size // 2)

    def clip(x):
        return jnp.clip(x, -bound, bound)

    action = clip(student.apply(old["student"], draws.next_noise, row["next"]))
    value = critic.apply(target_params, row["next"], action).mean(axis=0)
    target = row["return"] + row["factor"] * value
    q = critic.apply(params["critic"], row["seen"], row["action"])
    critic_loss = jnp.mean(row["weight"] * (q - target) ** 2)
    t = draws.time[:, None]
    x_t = (1 - t) * draws.noise + t * row["action"]
    velocity = flow.apply(params["flow"], x_t, draws.time, row["seen"])
    error = velocity - (row["action"] - draws.noise)
    bc_loss = jnp.mean(row["mask"] * error**2)
    x = draws.student_noise
    for i in range(FLOW_STEPS):
        time = jnp.full(len(x), i / FLOW_STEPS)
        x = x + flow.apply(old["flow"], x, time, row["seen"]) / FLOW_STEPS
    action = student.apply(params["student"], draws.student_noise, row["seen"])
    distill_loss = jnp.mean((action - clip(x)) ** 2)
    q = critic.apply(old["critic"], row["seen"], clip(action)).mean(axis=0)
    scale = jax.lax.stop_gradient(jnp.abs(q).mean()) if normalise else 1.0
    q_loss = -q.mean() / scale
    total = critic_loss + bc_loss + ALPHA * distill_loss + q_loss
    return total, {
        "critic_loss": critic_loss,
        "bc_loss": bc_loss,
        "distill_loss": distill_loss,
        "q_loss": q_loss,
    }


def check_against_the_joint_loss(agent, row_of, size, normalise=False):
    state, batch, draws, new, metrics = one_update(agent)
    params = {"critic": state.critic, **state.actor._asdict()}

    @jax.jit
    def gradients(params):
        return jax.grad(joint_loss, has_aux=True)(
            params, state.critic_target, params, row_of(batch), draws, size, normalise
        )

    slopes, losses = gradients(params)
    for name, value in losses.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-4), name
    moments = [find_adam(state.critic_opt), find_adam(state.actor_opt)]
    mu = {"critic": moments[0].mu, **moments[1].mu._asdict()}
    nu = {"critic": moments[0].nu, **moments[1].nu._asdict()}
    adam = optax.ScaleByAdamState(moments[0].count, mu, nu)
    optimizer = optax.adam(LR)
    opt_state = (adam, *optimizer.init(params)[1:])
    steps, _ = jax.jit(optimizer.update)(slopes, opt_state)
    expected = optax.apply_updates(params, steps)
    got = {"critic": new.critic, **new.actor._asdict()}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        got,
        expected,
    )
    moved = jax.tree.map(
        lambda t, p: 0.995 * t + 0.005 * p, state.critic_target, new.critic
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        new.critic_target,
        moved,
    )


def find_adam(state):
    found = []
    jax.tree.map(
        lambda leaf: found.append(leaf) if hasattr(leaf, "mu") else None,
        state,
        is_leaf=lambda leaf: hasattr(leaf, "mu"),
    )
    (adam,) = found
    return adam


def test_an_update_is_one_joint_adam_step_of_the_authors_loss():
    """Single actions: the plain algorithm on plain transitions."""
    agent = agent_of()
    key = jax.random.split(jax.random.key(0), 4)[3]
    batch = transitions(key, data(), 8)

    def row_of(_):
        return {
            "seen": batch.observation,
            "action": batch.action,
            "return": batch.reward,
            "factor": GAMMA * batch.discount,
            "next": batch.next_observation,
            "mask": 1.0,
            "weight": 1.0,
        }

    check_against_the_joint_loss(agent, row_of, 2)


def chunk_row(batch):
    """Chunks of three, QC's way: what is not valid counts in no loss."""
    weights = GAMMA ** np.arange(3)
    return {
        "seen": batch.observation,
        "action": jnp.stack([jnp.concatenate(list(chunk)) for chunk in batch.action]),
        "return": batch.reward @ weights,
        "factor": GAMMA**3 * batch.discount,
        "next": batch.next_observation,
        "mask": batch.valid[:, [0, 0, 1, 1, 2, 2]],
        "weight": batch.valid[:, 2],
    }


def test_chunks_that_cross_an_end_count_only_where_they_are_valid():
    agent = agent_of(chunk=3, normalize_q_loss=True)
    check_against_the_joint_loss(agent, chunk_row, 6, normalise=True)
    _, batch, _, _, metrics = one_update(agent)
    share = float(batch.valid[:, 2].mean())
    assert 0.2 < share < 0.9  # the batch has chunks of both kinds
    assert float(metrics["chunks_used"]) == pytest.approx(share)


def test_a_normalised_q_term_does_not_depend_on_the_scale_of_q():
    q = jnp.array([1.0, -3.0, 5.0])
    assert float(self_normalised_q_loss(q)) == pytest.approx(-1 / 3)
    slope = jax.grad(self_normalised_q_loss)
    np.testing.assert_allclose(slope(q), np.full(3, -1 / 9), rtol=1e-6)
    np.testing.assert_allclose(10 * slope(10 * q), slope(q), rtol=1e-6)
    assert float(fql.q_loss(q)) == -1.0


def test_with_a_large_alpha_the_student_is_its_teacher():
    """Though larger actions pay, it keeps to the law of the data, N(0.2, 0.3^2)."""
    config = fql.Config(
        alpha=1e4, lr=2e-3, batch_size=128, flow_steps=5, hidden=(32, 32)
    )
    agent = fql.make(config, DataSpec(1, 1, (-2.0,), (2.0,)))
    action = 0.2 + 0.3 * np.random.default_rng(0).normal(size=2000)
    zeros = np.zeros((2000, 1))
    made = from_arrays(zeros, action[:, None], action, zeros, np.ones(2000, bool))
    bandit = jax.tree.map(jnp.asarray, made)

    def update(state, key):
        batch = agent.sample_batch(key, bandit)
        return agent.update_step(state, batch, agent.draw(key))

    def act(state, key):
        return agent.act(agent.policy(state), (), jnp.zeros(1), key)[0]

    @jax.jit
    def trained(key):
        init_key, train_key, act_key = jax.random.split(key, 3)
        keys = jax.random.split(train_key, 1000)
        state, metrics = jax.lax.scan(update, agent.init(init_key), keys)
        keys = jax.random.split(act_key, 4096)
        return metrics["distill_loss"], jax.vmap(act, (None, 0))(state, keys)

    loss, actions = trained(jax.random.key(0))
    assert float(loss[0]) > 0.1
    assert float(loss[-50:].mean()) < 1e-3
    assert float(actions.mean()) == pytest.approx(0.2, abs=0.04)
    assert 0.15 < float(actions.std()) < 0.32


def test_a_chunk_comes_from_one_noise_and_is_carried_out_in_order():
    agent = agent_of(chunk=3)
    policy = jax.jit(agent.init)(jax.random.key(0)).actor.student
    act = jax.jit(agent.act)
    observations = jax.random.normal(jax.random.key(1), (4, 3))
    carry, actions = agent.reset(), []
    for t in range(4):
        action, carry = act(policy, carry, observations[t], jax.random.key(t))
        actions.append(action)
    for first in (0, 3):
        noise = jax.random.normal(jax.random.key(first), (1, 6))
        chunk = OneStepActor(6, HIDDEN).apply(policy, noise, observations[first][None])
        bound = np.tile([1.0, 0.5], 3)
        expected = np.clip(chunk[0], -bound, bound).reshape(3, 2)
        got = np.array(actions[first : first + 3])
        np.testing.assert_allclose(got, expected[: len(got)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"flow_steps": 0}, "flow_steps must be at least 1"),
        ({"q_agg": "median"}, "q_agg must be one of"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fql.make(fql.Config(**settings), SPEC)
