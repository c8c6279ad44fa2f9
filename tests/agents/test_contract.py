"""What every agent promises, checked over every module found in jdql/agents."""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import pkgutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdql.agents
from jdql.agents.base import Agent
from jdql.data.dataset import Dataset
from jdql.runtime import checkpoint, distributed, train
from jdql.types import DataSpec

SMALL = {
    "hidden": (16, 16),
    "width": 16,
    "blocks": 1,
    "step_dim": 4,
    "batch_size": 8,
    "diffusion_steps": 2,
    "flow_steps": 3,
    "schedule": "vp",
    "sample_steps": 2,
    "critics": 3,
    "backup_actions": 2,
    "candidates": 4,
    "ema_start": 1,
    "ema_every": 2,
}
SPEC = DataSpec(3, 2, (-1.0, -1.0), (1.0, 1.0))
SEEDS = (0, 1)


def discovered() -> list[str]:
    names = [module.name for module in pkgutil.iter_modules(jdql.agents.__path__)]
    return [
        name
        for name in names
        if hasattr(importlib.import_module(f"jdql.agents.{name}"), "Config")
    ]


NAMES = discovered()
agents = pytest.mark.parametrize("name", NAMES)


def module_of(name: str):
    return importlib.import_module(f"jdql.agents.{name}")


def small_config(name: str, **changes):
    config_type = module_of(name).Config
    fields = {field.name for field in dataclasses.fields(config_type)}
    settings = {k: v for k, v in SMALL.items() if k in fields}
    return config_type(**{**settings, **changes})


@functools.cache
def small_agent(name: str) -> Agent:
    return module_of(name).make(small_config(name), SPEC)


def dataset() -> Dataset:
    """Twenty episodes of ten random steps; every other episode ends in a terminal."""
    rng = np.random.default_rng(0)
    last = np.arange(200) % 10 == 9
    first_kind = (np.arange(200) // 10) % 2 == 0
    return Dataset(
        observation=rng.normal(size=(200, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, size=(200, 2)).astype(np.float32),
        reward=rng.normal(size=200).astype(np.float32),
        next_observation=rng.normal(size=(200, 3)).astype(np.float32),
        terminal=last & first_kind,
        timeout=last & ~first_kind,
        episode_ends=np.arange(10, 201, 10).astype(np.int32),
    )


DATA = jax.tree.map(jnp.asarray, dataset())


def one_update(agent: Agent, state, seed: int = 7):
    batch_key, draw_key = jax.random.split(jax.random.key(seed))
    batch = agent.sample_batch(batch_key, DATA)
    return agent.update_step(state, batch, agent.draw(draw_key))


TRACES: collections.Counter[str] = collections.Counter()


@functools.cache
def compiled(name: str):
    """One jitted update, shared by the tests below to save compilations."""

    @jax.jit
    def update(state, seed):
        TRACES[name] += 1
        return one_update(small_agent(name), state, seed)

    return update


@functools.cache
def initial(name: str):
    return jax.jit(small_agent(name).init)(jax.random.key(0))


@functools.cache
def trainer(name: str, seeds: tuple[int, ...], length: int):
    """Members on one device, as the run loop makes them."""
    make, config = module_of(name).make, small_config(name)
    mesh = distributed.member_mesh(len(seeds), jax.devices()[:1])
    members = train.Members(np.asarray(seeds, np.uint32), {})
    init = train.make_init(make, config, SPEC, mesh)
    chunk = train.make_chunk(make, config, SPEC, mesh, length)
    return lambda: init(members), lambda state: chunk(state, members, DATA)


def test_agents_are_found():
    assert {"diffusion_ql", "diffusion_bc"} <= set(NAMES)


@agents
def test_update_keeps_structure_shapes_and_types(name):
    state = initial(name)
    new, metrics = compiled(name)(state, 7)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
    assert int(new.step) == int(state.step) + 1
    assert all(value.shape == () for value in metrics.values())
    assert all(np.isfinite(value) for value in metrics.values())


@agents
def test_state_is_arrays_only(name):
    for leaf in jax.tree.leaves(initial(name)):
        assert isinstance(leaf, jax.Array)


@agents
def test_jit_equals_eager(name):
    with jax.disable_jit():
        eager, _ = one_update(small_agent(name), initial(name), 7)
    jitted, _ = compiled(name)(initial(name), 7)
    chex.assert_trees_all_close(eager, jitted, rtol=2e-3, atol=2e-5)


@agents
def test_same_noise_same_update_and_other_noise_another(name):
    first, _ = compiled(name)(initial(name), 7)
    again, _ = compiled(name)(initial(name), 7)
    other, _ = compiled(name)(initial(name), 8)
    chex.assert_trees_all_equal(first, again)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(first, other, rtol=1e-7, atol=0)


@agents
def test_an_update_is_traced_once(name):
    state = initial(name)
    for seed in range(3):
        state, _ = compiled(name)(state, seed)
    assert TRACES[name] == 1


@agents
def test_members_equal_separate_runs_to_the_bit(name):
    both_init, both = trainer(name, SEEDS, 4)
    together, metrics = both(both_init())
    for i, seed in enumerate(SEEDS):
        init, chunk = trainer(name, (seed,), 4)
        alone, alone_metrics = chunk(init())
        member = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], (together, metrics))
        chex.assert_trees_all_equal(member, (alone, alone_metrics))


@agents
def test_two_chunks_equal_one_to_the_bit(name):
    init, long = trainer(name, SEEDS, 4)
    _, short = trainer(name, SEEDS, 2)
    unbroken, _ = long(init())
    state, _ = short(init())
    state, _ = short(state)
    chex.assert_trees_all_equal(unbroken, state)


@agents
def test_checkpoint_round_trip(name, tmp_path):
    init, chunk = trainer(name, SEEDS, 2)
    state, _ = chunk(init())
    policy = jax.vmap(small_agent(name).policy)(state)
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(2, train=state, policy=policy, best=policy, metadata={})
    abstract = jax.eval_shape(lambda: init())
    restored = checkpoint.restore_train(tmp_path / "checkpoints", abstract)
    chex.assert_trees_all_equal(state, restored)
    one = checkpoint.restore_policy(
        tmp_path / "checkpoints",
        jax.eval_shape(jax.vmap(small_agent(name).policy), abstract),
        member=1,
    )
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[1], policy), one)


@agents
def test_actions_are_within_bounds_and_depend_on_the_key(name):
    agent = small_agent(name)
    if not isinstance(agent, Agent):
        pytest.skip("a learner without a policy")
    policy = agent.policy(initial(name))

    def act(key):
        observation = jnp.array([0.1, -2.0, 3.0])
        return agent.act(policy, agent.reset(), observation, key)[0]

    actions = jax.jit(jax.vmap(act))(jax.random.split(jax.random.key(0), 64))
    assert actions.shape == (64, 2)
    assert jnp.abs(actions).max() <= 1.0
    assert actions.std(axis=0).min() > 1e-3


def bandit_data() -> Dataset:
    """Actions +-0.6 with small noise in both dimensions; the positive ones pay."""
    rng = np.random.default_rng(1)
    sign = np.where(rng.random(2000) < 0.5, -1.0, 1.0)
    action = 0.6 * sign[:, None] + 0.05 * rng.normal(size=(2000, 2))
    zeros = np.zeros((2000, 3), np.float32)
    return Dataset(
        observation=zeros,
        action=action.astype(np.float32),
        reward=sign.astype(np.float32),
        next_observation=zeros,
        terminal=np.ones(2000, bool),
        timeout=np.zeros(2000, bool),
        episode_ends=np.arange(1, 2001).astype(np.int32),
    )


@agents
def test_learns_a_toy_bandit(name):
    """Cloning alone stays near the data; anything with a critic picks what pays."""
    sizes = {
        "hidden": (64, 64),
        "width": 64,
        "step_dim": 8,
        "batch_size": 64,
        "candidates": 16,
        "diffusion_steps": 5,
        "flow_steps": 5,
        "sample_steps": 5,
    }
    rates = {"lr": 2e-3, "critic_lr": 2e-3, "ema_start": 100, "actor_tau": 0.01}
    rates["alpha"] = 0.1  # of a student that pays for leaving the behaviour
    fields = {f.name for f in dataclasses.fields(module_of(name).Config)}
    changes = {k: v for k, v in {**sizes, **rates}.items() if k in fields}
    config = small_config(name, **changes)
    agent = module_of(name).make(config, SPEC)
    data = jax.tree.map(jnp.asarray, bandit_data())

    def update(state, key):
        batch_key, draw_key = jax.random.split(key)
        batch = agent.sample_batch(batch_key, data)
        return agent.update_step(state, batch, agent.draw(draw_key))

    keys = jax.random.split(jax.random.key(1), 2000)
    state, _ = jax.jit(lambda s, k: jax.lax.scan(update, s, k))(
        agent.init(jax.random.key(0)), keys
    )

    def act(key):
        zeros = jnp.zeros(3)
        return agent.act(agent.policy(state), agent.reset(), zeros, key)[0]

    actions = jax.jit(jax.vmap(act))(jax.random.split(jax.random.key(2), 256))
    paid = (actions.mean(axis=1) > 0).mean()
    if any(field.startswith("critic") for field in fields):
        assert paid > 0.9
    else:
        near = jnp.abs(jnp.abs(actions) - 0.6).max(axis=1) < 0.35
        assert near.mean() > 0.75
        assert 0.35 < paid < 0.65
