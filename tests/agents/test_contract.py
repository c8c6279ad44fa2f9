"""What every system promises, checked over every module found in jdql/agents.

A system gives its own small sizes (`Config.tiny`): a new one needs no line here.
"""

from __future__ import annotations

import collections
import functools
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jdql.agents
from jdql.agents import base
from jdql.agents.base import Agent
from jdql.config import float_settings
from jdql.data.dataset import Dataset, make_source
from jdql.optim import Model
from jdql.runtime import checkpoint, distributed, members, recipe
from jdql.runtime.recipe import Learned, Recipe
from jdql.types import DataSpec

SPEC = DataSpec(3, 2, (-1.0, -1.0), (1.0, 1.0))
SEEDS = (0, 1)
UPDATES = 4


def discovered() -> list[str]:
    names = [module.name for module in pkgutil.iter_modules(jdql.agents.__path__)]
    modules = {name: importlib.import_module(f"jdql.agents.{name}") for name in names}
    return [name for name, module in modules.items() if hasattr(module, "Config")]


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


def recipe_of(name: str) -> Recipe:
    """A system at its own small size, on earlier runs of the systems that it names."""
    config = importlib.import_module(f"jdql.agents.{name}").Config().tiny()
    source = make_source("random", dataset(), SPEC)
    given = {n: recipe_of(kinds[0]) for n, kinds in base.required(config).items()}
    return Recipe(base.maker(config), config, SPEC, source.scaling, given)


def learned_by(earlier: Recipe, seeds: tuple[int, ...]) -> Learned:
    """What an earlier run has learned before its first update, stacked over seeds."""
    mesh = distributed.member_mesh(len(seeds), jax.devices()[:1])
    inputs = members_with(earlier, seeds)
    state = members.make_init(earlier, mesh)(inputs)
    return members.make_learned(earlier, mesh)(state, inputs)


def members_with(system: Recipe, seeds: tuple[int, ...]) -> members.Members:
    given = {name: learned_by(r, seeds) for name, r in system.given.items()}
    return members.stacked(system.config, [{"seed": s} for s in seeds], given)


class System:
    """A system with the programs that the tests below share."""

    def __init__(self, name: str) -> None:
        self.recipe, self.traces = recipe_of(name), collections.Counter[str]()
        both = members_with(self.recipe, SEEDS)
        one = jax.tree.map(
            lambda leaf: jnp.asarray(leaf)[0], (both.settings, both.given)
        )
        self.agent: Agent = recipe.agent(self.recipe, *one)
        prepared = recipe.outline(self.recipe).prepare
        self.data = jax.tree.map(jnp.asarray, prepared(dataset()))
        self.initial = jax.jit(self.agent.init)(jax.random.key(0))

    def one_update(self, state: Any, seed: int = 7) -> Any:
        batch_key, draw_key = jax.random.split(jax.random.key(seed))
        batch = self.agent.sample_batch(batch_key, self.data)
        return self.agent.update_step(state, batch, self.agent.draw(draw_key))

    @functools.cached_property
    def update(self):
        @jax.jit
        def update(state, seed):
            self.traces["update"] += 1
            return self.one_update(state, seed)

        return update

    @functools.cache  # noqa: B019 (it lives as long as its fixture)
    def trainer(self, seeds: tuple[int, ...], length: int, on_cpu: bool = True):
        """Members on one device, as the run loop makes them, by either branch."""
        before, distributed.on_cpu = distributed.on_cpu, lambda: on_cpu
        try:
            mesh = distributed.member_mesh(len(seeds), jax.devices()[:1])
            inputs = members_with(self.recipe, seeds)
            init = members.make_init(self.recipe, mesh)(inputs)
            updates = members.make_updates(self.recipe, mesh, length)
            # Traced here: the branch is chosen as the program is made.
            updates = updates.lower(init, inputs, self.data).compile()
        finally:
            distributed.on_cpu = before
        # A copy: on one device the states are given away.
        return (
            lambda: jax.tree.map(jnp.copy, init),
            lambda state: updates(state, inputs, self.data),
        )


@pytest.fixture(scope="module", params=discovered())
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    """One system after another, so that only one's programs are in memory."""
    yield System(request.param)
    jax.clear_caches()


def test_systems_are_found():
    assert {"diffusion_ql", "diffusion_bc"} <= set(discovered())


def test_update_keeps_structure_shapes_and_types(system):
    new, metrics = system.update(system.initial, 7)
    chex.assert_trees_all_equal_shapes_and_dtypes(system.initial, new)
    assert int(new.step) == int(system.initial.step) + 1
    assert all(value.shape == () for value in metrics.values())
    assert all(np.isfinite(value) for value in metrics.values())


def test_state_is_arrays_only(system):
    for leaf in jax.tree.leaves(system.initial):
        assert isinstance(leaf, jax.Array)


def changes(old: Any, new: Any) -> np.ndarray:
    """How every float of a state has changed, flat."""
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    floats = [(a, b) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.floating)]
    return np.concatenate([np.ravel(np.float64(b) - np.float64(a)) for a, b in floats])


def assert_same_changes(system: System, one: Any, other: Any, unit: float) -> None:
    """Two new states differ by far less than one step of the optimiser."""
    change = changes(one, other)
    assert np.abs(change).max() <= 2.5 * unit  # a gradient of 0 has a sign of chance
    assert (np.abs(change) > 0.05 * unit).mean() < 0.005


def rate(system: System) -> float:
    """The largest step that an optimiser of the system takes."""
    rates = [v for n, v in float_settings(system.recipe.config).items() if "lr" in n]
    return max(rates)


def test_jit_equals_eager(system):
    with jax.disable_jit():
        eager, _ = system.one_update(system.initial)
    jitted, _ = system.update(system.initial, 7)
    assert_same_changes(system, eager, jitted, rate(system))


def test_every_model_makes_one_step_of_its_optimiser(system):
    """By the moments of Adam: a step that is missing, doubled or mixed up is seen."""
    new, _ = system.update(system.initial, 7)
    settings = np.array(list(float_settings(system.recipe.config).values()))

    def is_model(node: Any) -> bool:
        return isinstance(node, Model)

    pairs = zip(
        jax.tree.leaves(system.initial, is_leaf=is_model),
        jax.tree.leaves(new, is_leaf=is_model),
        strict=True,
    )
    models = [(a, b) for a, b in pairs if is_model(a) and jax.tree.leaves(a.params)]
    assert models
    for before, after in models:
        moments = [
            node
            for node in jax.tree.leaves(
                after.opt, is_leaf=lambda n: isinstance(n, optax.ScaleByAdamState)
            )
            if isinstance(node, optax.ScaleByAdamState)
        ]
        assert len(moments) == 1
        assert np.all(np.asarray(moments[0].count) == 1)
        change = changes(before.params, after.params)
        mean, variance = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
            for tree in (moments[0].mu, moments[0].nu)
        )
        # The first step of Adam: the bias of both moments is divided out.
        direction = (mean / 0.1) / (np.sqrt(variance / 0.001) + 1e-8)
        sure = np.abs(direction) > 0.9
        assert sure.mean() > 0.2
        taken = -change[sure] / direction[sure]
        np.testing.assert_allclose(taken, np.median(taken), rtol=2e-2)
        assert np.isclose(np.median(taken), settings, rtol=1e-3).any()


def test_same_noise_same_update_and_other_noise_another(system):
    first, _ = system.update(system.initial, 7)
    again, _ = system.update(system.initial, 7)
    other, _ = system.update(system.initial, 8)
    chex.assert_trees_all_equal(first, again)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(first, other, rtol=1e-7, atol=0)


def test_an_update_is_traced_once(system):
    state = system.initial
    for seed in range(3):
        state, _ = system.update(state, seed)
    assert system.traces["update"] == 1


def test_members_equal_separate_runs_to_the_bit(system):
    """On a CPU, where each core takes its members one after another."""
    both_init, both = system.trainer(SEEDS, UPDATES)
    together, metrics = both(both_init())
    for i, seed in enumerate(SEEDS):
        init, updates = system.trainer((seed,), UPDATES)
        alone, alone_metrics = updates(init())
        member = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], (together, metrics))
        chex.assert_trees_all_equal(member, (alone, alone_metrics))


def test_members_at_once_equal_members_in_turn(system):
    """The branch of accelerators, which takes all members at once."""
    init, in_turn = system.trainer(SEEDS, UPDATES)
    _, at_once = system.trainer(SEEDS, UPDATES, on_cpu=False)
    one, other = in_turn(init())[0], at_once(init())[0]
    assert_same_changes(system, one, other, UPDATES * rate(system))


def test_two_calls_equal_one_to_the_bit(system):
    init, long = system.trainer(SEEDS, UPDATES)
    _, short = system.trainer(SEEDS, UPDATES // 2)
    unbroken, _ = long(init())
    state, _ = short(init())
    state, _ = short(state)
    chex.assert_trees_all_equal(unbroken, state)


def test_other_settings_need_no_other_program(system):
    mesh = distributed.member_mesh(len(SEEDS), jax.devices()[:1])
    inputs = members_with(system.recipe, SEEDS)
    init = members.make_init(system.recipe, mesh)
    other = inputs._replace(
        settings={name: 0.5 * value for name, value in inputs.settings.items()}
    )
    init(inputs), init(other)
    assert init._cache_size() == 1
    assert set(inputs.settings) == set(float_settings(system.recipe.config))


def test_checkpoint_round_trip(system, tmp_path):
    folder = tmp_path / "checkpoints"
    mesh = distributed.member_mesh(len(SEEDS), jax.devices()[:1])
    inputs = members_with(system.recipe, SEEDS)
    init, updates = system.trainer(SEEDS, UPDATES)
    state, _ = updates(init())
    learned = members.make_learned(system.recipe, mesh)(state, inputs)
    with checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(2, train=state, learned=learned, metadata={})
    restored = checkpoint.restore_train(folder, jax.eval_shape(init))
    chex.assert_trees_all_equal(state, restored)
    # From what JSON holds of the recipe, as another process finds it.
    again = recipe.from_json(recipe.to_json(system.recipe))
    one = checkpoint.restore_learned(folder, recipe.abstract(again, 2), members=[1])
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[1:], learned), one)


def test_actions_are_within_bounds_and_depend_on_the_key(system):
    acting = system.agent.acting
    if acting is None:
        pytest.skip("a system without a policy")
    learned = system.agent.learned(system.initial)
    seen = jnp.tile(jnp.array([0.1, -2.0, 3.0]), (acting.history, 1))
    act = jax.jit(
        jax.vmap(lambda key: acting.act(learned, acting.reset(), seen, key)[0])
    )
    actions = act(jax.random.split(jax.random.key(0), 64))
    assert actions.ndim == 3
    assert actions.shape[2] == 2
    assert jnp.abs(actions).max() <= 1.0
    assert actions.std(axis=0).min() > 1e-3


def test_what_is_measured_is_finite_and_repeats(system):
    measure = system.agent.measure
    if measure is None:
        pytest.skip("a system that measures nothing")
    learned = system.agent.learned(system.initial)
    both = [measure(learned, system.data, jax.random.key(3)) for _ in range(2)]
    assert both[0]
    chex.assert_trees_all_equal(*both)
    assert all(np.isfinite(value) and value.shape == () for value in both[0].values())


def test_learns_a_toy_bandit(system):
    """Cloning alone stays near the data; anything with a critic picks what pays."""
    acting = system.agent.acting
    if acting is None:
        pytest.skip("a system without a policy")
    agent = system.agent
    data = jax.tree.map(jnp.asarray, agent.prepare(bandit_data()))

    def update(state, key):
        batch_key, draw_key = jax.random.split(key)
        batch = agent.sample_batch(batch_key, data)
        return agent.update_step(state, batch, agent.draw(draw_key))

    keys = jax.random.split(jax.random.key(1), 2000)
    state, _ = jax.jit(lambda s, k: jax.lax.scan(update, s, k))(system.initial, keys)
    learned, seen = agent.learned(state), jnp.zeros((acting.history, 3))
    act = jax.jit(
        jax.vmap(lambda key: acting.act(learned, acting.reset(), seen, key)[0][0])
    )
    actions = act(jax.random.split(jax.random.key(2), 256))
    paid = (actions.mean(axis=1) > 0).mean()
    if "critic" in state._fields:
        assert paid > 0.9
    else:
        near = jnp.abs(jnp.abs(actions) - 0.6).max(axis=1) < 0.35
        assert near.mean() > 0.75
        assert 0.35 < paid < 0.65
