"""The baselines: what one update does, and what acting does."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.bandit import (
    bc_cvae,
    bc_mle,
    bc_mmd,
    ql_cvae,
    ql_mle,
    ql_mmd,
    stages,
)
from experiments.studies.bandit.networks import Shift
from jdql.agents.base import Agent
from jdql.data.npz import from_columns
from jdql.envs import bandit
from jdql.types import DataSpec, Transition

pytestmark = pytest.mark.usefixtures("unoptimised")

SPEC = DataSpec(2, 2, (-1.0, -1.0), (1.0, 1.0))
B = 8
METHODS = (bc_mle, bc_cvae, bc_mmd, ql_mle, ql_cvae, ql_mmd)


def tiny(module, **changes) -> Agent:
    config = module.Config(batch_size=B, hidden=(16, 16), **changes)
    if hasattr(config, "critic_hidden"):
        config = dataclasses.replace(config, critic_hidden=(16, 16))
    return module.make(config, SPEC)


def batch_of(agent: Agent, seed: int = 0) -> Transition:
    source = from_columns(bandit.dataset(400), "bandit")
    dataset = jax.tree.map(jnp.asarray, source.dataset)
    return agent.sample_batch(jax.random.key(seed), dataset)


def updated(agent: Agent, updates: int = 1):
    state, metrics = jax.jit(agent.init)(jax.random.key(0)), {}
    step = jax.jit(agent.update_step)
    for i in range(updates):
        draws = agent.draw(jax.random.key(i))
        state, metrics = step(state, batch_of(agent, i), draws)
    return state, metrics


def acted(agent: Agent, learned, seed: int):
    """An action of the policy, [2]."""
    act, reset, history, _ = agent.acting
    assert history == 1
    actions, _ = jax.jit(act)(learned, reset(), jnp.zeros((1, 2)), jax.random.key(seed))
    return actions[0]


def blank(state: stages.TrainState) -> stages.TrainState:
    """The state with all parameters 0."""
    models = {
        name: model._replace(params=jax.tree.map(jnp.zeros_like, model.params))
        for name, model in state.models.items()
    }
    return state._replace(models=models)


@pytest.mark.parametrize("module", METHODS, ids=lambda m: m.__name__.split(".")[-1])
def test_every_method_learns_and_acts(module) -> None:
    agent = tiny(module)
    before = jax.jit(agent.init)(jax.random.key(0))
    state, metrics = updated(agent, 3)
    assert int(state.step) == 3
    assert all(np.isfinite(value) for value in metrics.values())
    own, start = agent.learned(state), agent.learned(before)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start, own)
    assert all(any(jax.tree.leaves(part)) for part in moved.values())
    action, again = acted(agent, own, 0), acted(agent, own, 1)
    assert action.shape == (2,)
    assert (action != again).all()


def test_stages_run_in_order_and_move_their_own_network_alone() -> None:
    def first(own, params, batch, draws, metrics):
        return (own - 1.0) ** 2, {"seen": own}

    def second(own, params, batch, draws, metrics):
        # Were it not for the order this would be 0 - 0.
        return own * params["first"] + metrics["seen"] * own, {}

    agent = stages.agent(
        1,
        lambda key: {"first": jnp.array(0.0), "second": jnp.array(0.0)},
        [
            stages.Stage("first", first, 0.1),
            stages.Stage("second", second, 1.0, lambda x: jnp.maximum(x, -0.25)),
        ],
        lambda key: (),
        lambda *inputs: jnp.zeros((1, 1)),
    )
    start = agent.init(jax.random.key(0))
    state, metrics = jax.jit(agent.update_step)(start, None, ())
    # Adam's first step is the learning rate.
    np.testing.assert_allclose(state.models["first"].params, 0.1, rtol=1e-5)
    # Its slope is the new first, 0.1: downhill by a whole step, and then projected.
    np.testing.assert_allclose(metrics["second_grad_norm"], 0.1, rtol=1e-5)
    np.testing.assert_allclose(state.models["second"].params, -0.25)


def test_the_gaussian_loss_of_a_blank_network() -> None:
    agent = tiny(bc_mle)
    state = agent.init(jax.random.key(0))
    batch = batch_of(agent)
    _, metrics = jax.jit(agent.update_step)(blank(state), batch, ())
    squares = np.mean(np.sum(np.square(batch.action), axis=1))
    expected = 0.5 * squares + np.log(2 * np.pi)  # of N(0, 1), two dimensions
    np.testing.assert_allclose(metrics["bc_loss"], expected, rtol=1e-5)


def test_the_gaussian_is_clamped() -> None:
    agent = tiny(bc_mle)
    params = agent.learned(agent.init(jax.random.key(0)))
    params["actor"]["params"]["log_std"]["bias"] = jnp.array([50.0, -50.0])
    keys = jax.random.split(jax.random.key(0), 400)
    act = jax.vmap(agent.acting.act, in_axes=(None, None, None, 0))
    spread = np.std(act(params, (), jnp.zeros((1, 2)), keys)[0][:, 0], axis=0)
    np.testing.assert_allclose(spread[0], np.exp(2.0), rtol=0.1)
    assert spread[1] < 1e-6


def test_the_critic_regresses_the_reward_and_nothing_else() -> None:
    agent = tiny(ql_mle)
    state = agent.init(jax.random.key(0))
    batch = batch_of(agent)
    step, draws = jax.jit(agent.update_step), agent.draw(jax.random.key(1))
    _, metrics = step(blank(state), batch, draws)
    expected = 2 * np.mean(np.square(batch.reward))  # two heads, both 0
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-5)
    # No discount, next observation or mask has a say in it.
    other = batch._replace(mask=1 - batch.mask)
    _, same = step(blank(state), other, draws)
    assert same["critic_loss"] == metrics["critic_loss"]


def test_latents_are_clipped_when_sampling() -> None:
    agent = tiny(bc_cvae)
    params = agent.learned(agent.init(jax.random.key(0)))["vae"]
    vae = bc_cvae.VAE(2, (16, 16))
    far = bc_cvae.decode(vae, params, jnp.zeros((1, 2)), jnp.full((1, 4), 9.0))
    edge = bc_cvae.decode(vae, params, jnp.zeros((1, 2)), jnp.full((1, 4), 0.5))
    near = bc_cvae.decode(vae, params, jnp.zeros((1, 2)), jnp.full((1, 4), 0.4))
    np.testing.assert_array_equal(far, edge)
    assert (near != edge).any()


def test_the_shift_is_short_and_stays_inside() -> None:
    shift = Shift(0.05, (16, 16))
    observation, action = jnp.zeros((5, 2)), jnp.linspace(-1, 1, 10).reshape(5, 2)
    params = shift.init(jax.random.key(0), observation, action)
    params = jax.tree.map(lambda leaf: 100 * leaf, params)
    moved = shift.apply(params, observation, action)
    assert np.abs(moved - action).max() <= 0.05 + 1e-6
    assert np.abs(moved - action).max() > 0.04
    assert np.abs(moved).max() <= 1.0


def test_bcq_acts_with_or_without_the_shift() -> None:
    plain, shifted = tiny(ql_cvae), tiny(ql_cvae, shifted=True)
    params = plain.learned(plain.init(jax.random.key(0)))
    a, b = acted(plain, params, 3), acted(shifted, params, 3)
    assert 0 < np.abs(a - b).max() <= 0.05


@pytest.mark.parametrize(("bound", "sign"), [(-1.0, 1), (9.0, -1)])
def test_the_multiplier_rises_while_the_bound_is_exceeded(bound, sign) -> None:
    agent = tiny(ql_mmd, bound=bound)
    before = agent.learned(agent.init(jax.random.key(0)))["log_multiplier"]
    after = agent.learned(updated(agent)[0])["log_multiplier"]
    np.testing.assert_allclose(after - before, sign * 1e-3, rtol=1e-2)


def test_the_multiplier_stays_in_its_range() -> None:
    agent = tiny(ql_mmd, log_multiplier=(-0.5, 0.5), multiplier_lr=10.0, bound=-1.0)
    assert float(agent.learned(updated(agent)[0])["log_multiplier"]) == 0.5
