"""Flow Q-learning against its definition, written out with one joint loss."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdql.agents import fql
from jdql.data.dataset import from_arrays
from jdql.networks.mlp import OneStepActor, VelocityNetwork, gelu_critic
from jdql.rl.improvement import self_normalised_q_loss
from jdql.types import DataSpec
from tests.agents import toys
from tests.agents.programs import once
from tests.agents.toys import HIGH, LOW, SPEC

ALPHA, GAMMA, LR, FLOW_STEPS = 0.7, 0.9, 1e-3, 3
SMALL = dataclasses.replace(
    fql.Config().tiny(),
    alpha=ALPHA,
    discount=GAMMA,
    lr=LR,
    critic_lr=LR,
    batch_size=8,
    flow_steps=FLOW_STEPS,
)


@functools.cache
def agent_of(**settings):
    return fql.make(dataclasses.replace(SMALL, **settings), SPEC)


@functools.cache
def one_update(agent):
    """A state some updates old, a batch, draws, and what an update makes of them."""

    @once
    def step(state, key):
        batch, draws = agent.sample_batch(key, toys.dataset()), agent.draw(key)
        return batch, draws, *agent.update_step(state, batch, draws)

    keys = jax.random.split(jax.random.key(0), 3)
    state = toys.initial(agent)
    for key in keys[:2]:
        *_, state, _ = step(state, key)
    return state, *step(state, keys[2])


def joint_loss(params, target_params, old, row, draws, normalise):
    """The authors' total loss; `old` are the parameters that are not differentiated.

    `row` is a `toys.chunk_row`.
    """
    size = row["action"].shape[1]
    flow, student = (
        VelocityNetwork(size, SMALL.hidden),
        OneStepActor(size, SMALL.hidden),
    )
    critic = gelu_critic(SMALL.hidden)

    def clip(x):
        return jnp.clip(x, jnp.tile(LOW, size // 2), jnp.tile(HIGH, size // 2))

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
    taught = toys.along_the_flow(
        functools.partial(flow.apply, old["flow"]),
        draws.student_noise,
        row["seen"],
        FLOW_STEPS,
    )
    action = student.apply(params["student"], draws.student_noise, row["seen"])
    distill_loss = jnp.mean((action - taught) ** 2)
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


def joint_optimizer_state(state):
    """Adam's moments of all networks as those of one tree."""
    actor, critic = state.actor.opt[1][0], state.critic.opt[1][0]
    mu = {"critic": critic.mu, **actor.mu._asdict()}
    nu = {"critic": critic.nu, **actor.nu._asdict()}
    return optax.ScaleByAdamState(critic.count, mu, nu), *optax.adam(LR).init(mu)[1:]


@pytest.mark.parametrize("settings", [{}, {"chunk": 3, "normalize_q_loss": True}])
def test_an_update_is_one_joint_adam_step_of_the_authors_loss(settings):
    """With h = 1 the plain algorithm; of chunks only what is valid counts."""
    state, batch, draws, new, metrics = one_update(agent_of(**settings))
    params = {"critic": state.critic.params, **state.actor.params._asdict()}
    row = toys.chunk_row(batch, GAMMA)
    normalise = "normalize_q_loss" in settings

    @once
    def expected():
        slopes, losses = jax.grad(joint_loss, has_aux=True)(
            params, state.critic.average, params, row, draws, normalise
        )
        steps, _ = optax.adam(LR).update(slopes, joint_optimizer_state(state))
        return optax.apply_updates(params, steps), losses

    parameters, losses = expected()
    for name, value in losses.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-4), name
    got = {"critic": new.critic.params, **new.actor.params._asdict()}
    toys.assert_near(got, parameters, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("settings", [{}, {"chunk": 3, "normalize_q_loss": True}])
def test_the_target_follows_the_critic_of_before_the_update(settings):
    state, *_, new, _ = one_update(agent_of(**settings))
    expected = toys.between(state.critic.average, state.critic.params, SMALL.tau)
    toys.assert_near(new.critic.average, expected)
    late = toys.between(state.critic.average, new.critic.params, SMALL.tau)
    kernels = [
        t["params"]["q"]["Dense_0"]["kernel"] for t in (new.critic.average, late)
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-6


def test_chunks_that_cross_an_end_are_part_of_the_batch():
    _, batch, *_, metrics = one_update(agent_of(chunk=3, normalize_q_loss=True))
    share = float(batch.valid[:, 2].mean())
    assert 0.2 < share < 0.9
    assert float(metrics["chunks_used"]) == pytest.approx(share)


def test_a_normalised_q_term_does_not_depend_on_the_scale_of_q():
    q = jnp.array([1.0, -3.0, 5.0])
    assert float(self_normalised_q_loss(q)) == pytest.approx(-1 / 3)
    slope = jax.jit(jax.grad(self_normalised_q_loss))
    np.testing.assert_allclose(slope(q), np.full(3, -1 / 9), rtol=1e-6)
    np.testing.assert_allclose(10 * slope(10 * q), slope(q), rtol=1e-6)
    assert float(fql.q_loss(q)) == -1.0


def test_with_a_large_alpha_the_student_is_its_teacher():
    """Though larger actions pay, it keeps to the law of the data, N(0.2, 0.3^2)."""
    tiny = fql.Config().tiny()
    agent = fql.make(
        dataclasses.replace(tiny, alpha=1e4, batch_size=128),
        DataSpec(1, 1, (-2.0,), (2.0,)),
    )
    action = 0.2 + 0.3 * np.random.default_rng(0).normal(size=2000)
    zeros = np.zeros((2000, 1))
    made = from_arrays(zeros, action[:, None], action, zeros, np.ones(2000, bool))
    bandit = jax.tree.map(jnp.asarray, made)

    def update(state, key):
        batch_key, draw_key = jax.random.split(key)
        batch = agent.sample_batch(batch_key, bandit)
        return agent.update_step(state, batch, agent.draw(draw_key))

    @jax.jit
    def trained(key):
        init_key, train_key, act_key = jax.random.split(key, 3)
        keys = jax.random.split(train_key, 1000)
        state, metrics = jax.lax.scan(update, agent.init(init_key), keys)
        learned, keys = agent.learned(state), jax.random.split(act_key, 4096)
        play = jax.vmap(lambda key: toys.act(agent, learned, jnp.zeros(1), key))
        return metrics["distill_loss"], play(keys)

    loss, actions = trained(jax.random.key(0))
    assert float(loss[0]) > 0.1
    assert float(loss[-50:].mean()) < 1e-3
    assert float(actions.mean()) == pytest.approx(0.2, abs=0.04)
    assert 0.15 < float(actions.std()) < 0.32


def test_a_plan_is_a_chunk_of_the_student_in_order():
    agent = agent_of(chunk=3, normalize_q_loss=True)
    learned, key = agent.learned(toys.initial(agent)), jax.random.key(5)
    observation = jnp.array([0.3, -1.0, 0.5])

    @once
    def both():
        noise = jax.random.normal(key, (1, 6))
        network = OneStepActor(6, SMALL.hidden)
        chunk = network.apply(learned, noise, observation[None])[0]
        return toys.act(agent, learned, observation, key), chunk

    plan, chunk = both()
    expected = np.clip(np.reshape(chunk, (3, 2)), LOW, HIGH)
    np.testing.assert_allclose(plan, expected, rtol=1e-5, atol=1e-6)


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
