"""What every system promises, checked over every module found in jdql/agents.

A system gives its own small sizes (`Config.tiny`): a new one needs no line here.
"""

from __future__ import annotations

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
UPDATES = 2


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
    """Actions +-0.6 with small noise in both dimensions; the positive ones pay.

    Every step ends its episode.  The arrays have the shapes of `dataset`, so that the
    same programs take them.
    """
    rng = np.random.default_rng(1)
    sign = np.where(np.arange(200) % 2, -1.0, 1.0)
    action = 0.6 * sign[:, None] + 0.05 * rng.normal(size=(200, 2))
    zeros = np.zeros((200, 3), np.float32)
    return dataset()._replace(
        observation=zeros,
        action=action.astype(np.float32),
        reward=sign.astype(np.float32),
        next_observation=zeros,
        terminal=np.ones(200, bool),
        timeout=np.zeros(200, bool),
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
        self.recipe = recipe_of(name)
        one = jax.tree.map(
            lambda leaf: jnp.asarray(leaf)[0], members_with(self.recipe, SEEDS[:1])
        )
        self.agent: Agent = recipe.agent(self.recipe, one.settings, one.given)
        prepare = recipe.outline(self.recipe).prepare
        self.data = jax.tree.map(jnp.asarray, prepare(dataset()))

    @functools.cache  # noqa: B019 (it lives as long as its fixture)
    def updates(self, count: int, length: int, on_cpu: bool = True) -> Any:
        """`(states, members, data) -> (states, metrics)` as the run loop makes it."""

        def call(*inputs: Any) -> Any:
            # The branch is chosen as the program is traced.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(distributed, "on_cpu", lambda: on_cpu)
                return program(*inputs)

        mesh = distributed.member_mesh(count, jax.devices()[:1])
        program = members.make_updates(self.recipe, mesh, length)
        call.program = program  # type: ignore[attr-defined]
        return call

    @functools.cached_property
    def init(self) -> Any:
        mesh = distributed.member_mesh(1, jax.devices()[:1])
        return members.make_init(self.recipe, mesh)

    @functools.cache  # noqa: B019
    def inputs(self, seeds: tuple[int, ...]) -> members.Members:
        return members_with(self.recipe, seeds)

    def before(self, seeds: tuple[int, ...] = SEEDS[:1]) -> Any:
        """The states of these members before training, which may be given away."""
        each = [self.init(self.inputs((seed,))) for seed in seeds]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *each)

    def train(self, state: Any, seeds: tuple[int, ...], length: int, **branch: Any):
        """States and metrics after `length` updates."""
        updates = self.updates(len(seeds), length, **branch)
        return updates(state, self.inputs(seeds), self.data)

    @functools.cached_property
    def one(self) -> Any:
        """The state of the first member before training, and after one update."""
        new, metrics = self.train(self.before(), SEEDS[:1], 1)
        return jax.tree.map(lambda leaf: leaf[0], (self.before(), new, metrics))

    @functools.cached_property
    def both(self) -> Any:
        """States and metrics of two members, one after the other."""
        return self.train(self.before(SEEDS), SEEDS, UPDATES)

    @functools.cached_property
    def act(self) -> Any:
        """`(learned, observation [O]) -> plans [256, h, A]`, each with its own key."""
        acting = self.agent.acting
        if acting is None:
            pytest.skip("a system without a policy")

        @jax.jit
        def act(learned: Any, observation: Any) -> Any:
            seen = jnp.tile(observation, (acting.history, 1))
            keys = jax.random.split(jax.random.key(0), 256)
            return jax.vmap(lambda k: acting.act(learned, acting.reset(), seen, k)[0])(
                keys
            )

        return act


@pytest.fixture(scope="module", params=discovered())
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    """One system after another: what its tests compile serves all of them, and goes."""
    yield System(request.param)
    jax.clear_caches()


def test_systems_are_found():
    assert {"diffusion_ql", "diffusion_bc"} <= set(discovered())


def test_update_keeps_structure_shapes_and_types(system):
    old, new, metrics = system.one
    chex.assert_trees_all_equal_shapes_and_dtypes(old, new)
    assert int(old.step) == 0
    assert int(new.step) == 1
    assert all(value.shape == (1,) for value in metrics.values())
    assert all(np.isfinite(value).all() for value in metrics.values())


def test_state_is_arrays_only(system):
    for leaf in jax.tree.leaves(system.one[0]):
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


@pytest.fixture
def one_update(system):
    """Compiled as it is used, before a test asks for less."""
    return system.one


def test_the_loop_calls_the_functions_of_the_contract(system, one_update, unoptimised):
    """What a user who calls them has, traced anew: nothing is kept from a trace."""
    old, new, _ = one_update
    keys = jax.random.split(jax.random.key(SEEDS[0]))  # of init, and of training
    agent = system.agent

    @jax.jit
    def plain(state: Any, data: Any) -> Any:
        batch_key, draw_key = jax.random.split(jax.random.fold_in(keys[1], 0))
        batch = agent.sample_batch(batch_key, data)
        return agent.update_step(state, batch, agent.draw(draw_key))[0]

    assert_same_changes(system, plain(old, system.data), new, rate(system))


def test_every_model_makes_one_step_of_its_optimiser(system):
    """By the moments of Adam: a step that is missing, doubled or mixed up is seen."""
    old, new, _ = system.one
    settings = np.array(list(float_settings(system.recipe.config).values()))

    def is_model(node: Any) -> bool:
        return isinstance(node, Model)

    pairs = zip(
        jax.tree.leaves(old, is_leaf=is_model),
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
        # A network whose last layer starts at 0 has no other gradient at first.
        assert sure[mean != 0].mean() > 0.2
        taken = -change[sure] / direction[sure]
        np.testing.assert_allclose(taken, np.median(taken), rtol=2e-2)
        assert np.isclose(np.median(taken), settings, rtol=1e-3).any()


def test_same_noise_same_update_and_other_noise_another(system):
    first, again, other = (
        system.train(system.before(), (seed,), 1)[0] for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, again)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(first, other, rtol=1e-7, atol=0)


def test_members_together_equal_members_alone_stopped_and_resumed_to_the_bit(system):
    """On a CPU, where each core takes its members one after another."""
    together, _ = system.both
    for i, seed in enumerate(SEEDS):
        alone = system.before((seed,))
        for _ in range(UPDATES):
            alone, _ = system.train(alone, (seed,), 1)
        member = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], together)
        chex.assert_trees_all_equal(member, alone)


@pytest.fixture
def in_turn(system):
    """The members of `both`, compiled as they are used."""
    return system.both[0]


def test_members_at_once_equal_members_in_turn(system, in_turn, unoptimised):
    """The branch of accelerators, which takes all members at once."""
    at_once, _ = system.train(system.before(SEEDS), SEEDS, UPDATES, on_cpu=False)
    assert_same_changes(system, in_turn, at_once, UPDATES * rate(system))


def test_one_program_serves_all_updates_and_settings(system):
    inputs = system.inputs(SEEDS)
    assert set(inputs.settings) == set(float_settings(system.recipe.config))
    other = inputs._replace(
        settings={name: 0.9 * value for name, value in inputs.settings.items()}
    )
    updates = system.updates(2, UPDATES)
    state, _ = updates(system.before(SEEDS), other, system.data)
    with pytest.raises(AssertionError):  # the settings are obeyed
        chex.assert_trees_all_close(state, system.both[0], rtol=1e-7, atol=0)
    updates(state, inputs, system.data)
    assert updates.program._cache_size() == 1


def test_checkpoint_round_trip(system, tmp_path):
    folder = tmp_path / "checkpoints"
    mesh = distributed.member_mesh(len(SEEDS), jax.devices()[:1])
    state, inputs = system.both[0], system.inputs(SEEDS)
    learned = members.make_learned(system.recipe, mesh)(state, inputs)
    with checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(2, train=state, learned=learned, metadata={})
    shapes = jax.eval_shape(lambda: state)
    chex.assert_trees_all_equal(state, checkpoint.restore_train(folder, shapes))
    # From what JSON holds of the recipe, as another process finds it.
    again = recipe.from_json(recipe.to_json(system.recipe))
    one = checkpoint.restore_learned(folder, recipe.abstract(again, 2), members=[1])
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[1:], learned), one)


def test_actions_are_within_bounds_and_depend_on_the_key(system):
    learned = system.agent.learned(system.one[0])
    actions = system.act(learned, jnp.array([0.1, -2.0, 3.0]))
    assert actions.ndim == 3
    assert actions.shape[2] == 2
    assert jnp.abs(actions).max() <= 1.0
    assert actions.std(axis=0).min() > 1e-3


def test_what_is_measured_is_finite_and_repeats(system):
    measure = system.agent.measure
    if measure is None:
        pytest.skip("a system that measures nothing")
    learned = system.agent.learned(system.one[1])
    both = [measure(learned, system.data, jax.random.key(3)) for _ in range(2)]
    assert both[0]
    chex.assert_trees_all_equal(*both)
    assert all(np.isfinite(value) and value.shape == () for value in both[0].values())


def test_learns_a_toy_bandit(system):
    """Cloning alone stays near the data; anything with a critic picks what pays.

    Inverse dynamics cannot tell actions apart where the states are alike.
    """
    act, inputs = system.act, system.inputs(SEEDS)
    data = jax.tree.map(jnp.asarray, system.agent.prepare(bandit_data()))
    state, updates = system.before(SEEDS), system.updates(2, UPDATES)
    for _ in range(2000 // UPDATES):
        state, _ = updates(state, inputs, data)
    first = jax.tree.map(lambda leaf: leaf[0], state)
    actions = act(system.agent.learned(first), jnp.zeros(3))[:, 0]
    paid = (actions.mean(axis=1) > 0).mean()
    if "critic" in state._fields:
        assert paid > 0.9
    elif "inverse" in state._fields:
        # Actions are read off states, which are all alike here: that is their mean.
        assert jnp.abs(actions).max() < 0.35
    else:
        near = jnp.abs(jnp.abs(actions) - 0.6).max(axis=1) < 0.35
        assert near.mean() > 0.75
        assert 0.35 < paid < 0.65
