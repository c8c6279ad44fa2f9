"""Members: the seeds of a run times its swept settings, and compiled runs of updates.

Every array of a run has the S members as its leading axis.  Updates are compiled as
`jit(map over members(scan(update)))` with the state donated and the data shared.  The
key of an update is `fold_in(train key of the seed, step)`, so that a resumed run equals
an unbroken one bit for bit and no key has to be saved.  All float settings reach the
maker as traced numbers, swept or not: another value needs no other program.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jdql.agents.base import Data, Metrics, State
from jdql.config import SWEPT, Config, check_sweep, float_settings
from jdql.data.dataset import Dataset
from jdql.runtime import distributed
from jdql.runtime.recipe import Learned, Recipe, agent, member_config, outline
from jdql.types import Array, Float, Int

Member = dict[str, Any]  # {"seed": 0, "agent.eta": 0.5}
# A program that runs once is not worth optimising: it compiles in half the time.
ONCE = {"xla_backend_optimization_level": 0}
MEASURING = 0x6D656173  # folded into a member's key: measuring never repeats training


class Members(NamedTuple):
    """What distinguishes the S members of a run.

    Attributes:
      seed: `[S]` uint32.
      settings: the float settings of the system by field name, each `[S]`.
      given: what the earlier runs of each member learned, by name; leaves `[S, ...]`.
    """

    seed: Int[Array, " S"]
    settings: dict[str, Float[Array, " S"]]
    given: dict[str, Learned]


def members_of(config: Config) -> list[Member]:
    """The members in order: all seeds of the first settings, then of the next.

    Args:
      config: the run; `config.seeds` must be a number.

    Returns:
      For each member its `seed` and its value of each swept setting, by dotted name.
    """
    assert config.seeds is not None
    names = [name for name, _ in config.sweep]
    seeds = range(config.seed, config.seed + config.seeds)
    products = itertools.product(*(values for _, values in config.sweep))
    return [
        {"seed": seed, **dict(zip(names, values, strict=True))}
        for values in products
        for seed in seeds
    ]


def own_config(config: Any, member: Mapping[str, Any]) -> Any:
    """The system's settings of one member, as numbers."""
    swept = {n.removeprefix(SWEPT): member[n] for n in member if n.startswith(SWEPT)}
    return member_config(config, swept)


def stacked(
    config: Any,
    members: Sequence[Mapping[str, Any]],
    given: Mapping[str, Learned] | None = None,
) -> Members:
    """The arrays of the members, on the host.

    Args:
      config: the system's settings.
      members: as of `members_of`.
      given: what earlier runs learned, in the order of the members.
    """
    each = [float_settings(own_config(config, member)) for member in members]
    settings: dict[str, Any] = {
        name: np.array([values[name] for values in each], np.float32)
        for name in each[0]
    }
    seeds: Any = np.array([member["seed"] for member in members], np.uint32)
    return Members(seeds, settings, dict(given or {}))


def swept_settings(members: Sequence[Mapping[str, Any]]) -> list[Member]:
    """The swept settings of each member, without the seed."""
    return [{n: v for n, v in member.items() if n != "seed"} for member in members]


def listed(members: Sequence[Mapping[str, Any]], values: Iterable[float]) -> str:
    """A value (S,) of every member in one line: by seed, or the mean by setting."""
    groups: dict[str, list[float]] = {}
    for swept, value in zip(swept_settings(members), values, strict=True):
        name = " ".join(f"{name}={setting:g}" for name, setting in swept.items())
        groups.setdefault(name, []).append(value)
    if list(groups) == [""]:
        return "seeds: " + " ".join(f"{value:.1f}" for value in groups[""])
    means = (f"{name}: {np.mean(group):.1f}" for name, group in groups.items())
    return "; ".join(means)


def describe(member: Mapping[str, Any]) -> str:
    """A member in words: `seed 0`, or `seed 0 with agent.eta=0.5`."""
    values = [f"{name}={member[name]:g}" for name in member if name.startswith(SWEPT)]
    return " with ".join([f"seed {member['seed']}", *filter(None, [" ".join(values)])])


def check(recipe: Recipe, config: Config) -> None:
    """Refuses a sweep of what is no float setting, and values that the system refuses.

    Raises:
      ValueError: there is no such setting, or a value is out of range.
    """
    check_sweep(config)
    for member in members_of(config):
        outline(recipe._replace(config=own_config(recipe.config, member)))


@contextlib.contextmanager
def traced(recipe: Recipe, members: Members, data: Data) -> Iterator[None]:
    """Names the float setting that a program cannot be traced for, where one is.

    Args:
      recipe: of what is traced inside.
      members: of one member at least.
      data: what batches are drawn from; only its shapes are used.

    Raises:
      ValueError: the program of the system depends on the value of a float setting.
    """
    try:
        yield
    except jax.errors.JAXTypeError:
        for name in members.settings:
            if not _traceable(recipe, members, name, data):
                raise ValueError(
                    f"{SWEPT}{name} decides the program of this system, but one "
                    "program serves all of its values: choose by jnp.where instead of "
                    "if, or declare the field with metadata=jdql.config.STATIC"
                ) from None
        raise


def _traceable(recipe: Recipe, members: Members, name: str, data: Data) -> bool:
    """Whether all functions can be traced with a traced value of this setting."""

    def every_function(value: Array, given: dict[str, Learned], data: Data) -> Any:
        made = agent(recipe, {name: value}, given)
        key = jax.random.key(0)
        state, batch = made.init(key), made.sample_batch(key, data)
        state, _ = made.update_step(state, batch, made.draw(key))
        learned = made.learned(state)
        if made.acting is not None:
            seen = jnp.zeros((made.acting.history, recipe.spec.observation_dim))
            rows, _ = made.acting.act(learned, made.acting.reset(), seen, key)
            if made.acting.follow is not None:
                made.acting.follow(learned, rows[0], seen[-1])

    one = jax.tree.map(lambda leaf: leaf[0], (members.settings[name], members.given))
    try:
        jax.eval_shape(every_function, *one, data)
    except jax.errors.JAXTypeError:
        return False
    return True


def prepared(recipe: Recipe, config: Config, dataset: Dataset) -> Data:
    """What batches are drawn from, on the host: the same for all members.

    Raises:
      ValueError: a swept setting changes it.
    """
    plain = outline(recipe).prepare
    data = plain(dataset)
    if config.sweep and data is not dataset:
        for member in members_of(config):
            own = recipe._replace(config=own_config(recipe.config, member))
            other = jax.tree.leaves(outline(own).prepare(dataset))
            pairs = zip(jax.tree.leaves(data), other, strict=True)
            if not all(np.array_equal(a, b) for a, b in pairs):
                raise ValueError(
                    "the data that this system prepares depend on what is swept "
                    f"({describe(member)} has others): start a run for each value"
                )
    return data


def make_init(recipe: Recipe, mesh: Mesh) -> Callable[[Members], State]:
    """A function that initialises the states of all members, sharded over `mesh`."""

    def init(member: Members, _: tuple) -> State:
        made = agent(recipe, member.settings, member.given)
        return made.init(jax.random.split(jax.random.key(member.seed))[0])

    mapped = distributed.map_members(init, mesh)
    return jax.jit(lambda members: mapped(members, ()), compiler_options=ONCE)


def make_updates(
    recipe: Recipe, mesh: Mesh, length: int
) -> Callable[[State, Members, Data], tuple[State, dict[str, Array]]]:
    """A compiled function that makes `length` updates of every member.

    Returns:
      `(states, members, data) -> (states, metrics)`; the states are donated, and each
      metric is `[S, length]`.
    """

    def of_member(inputs: tuple[State, Members], data: Data):
        state, member = inputs
        made = agent(recipe, member.settings, member.given)
        train_key = jax.random.split(jax.random.key(member.seed))[1]

        def update(state: State, _: Any):
            key = jax.random.fold_in(train_key, state.step)
            batch_key, draw_key = jax.random.split(key)
            batch = made.sample_batch(batch_key, data)
            return made.update_step(state, batch, made.draw(draw_key))

        return distributed.scan(update, state, length)

    mapped = distributed.map_members(of_member, mesh)

    def updates(states: State, members: Members, data: Data):
        return mapped((states, members), data)

    return jax.jit(updates, donate_argnums=distributed.donated(mesh, 0))


def make_learned(recipe: Recipe, mesh: Mesh) -> Callable[[State, Members], Learned]:
    """A compiled function of what all members have learned so far: copies."""

    def of_member(state: State, member: Members) -> Learned:
        own = agent(recipe, member.settings, member.given).learned(state)
        return Learned(own, member.settings, recipe.scaling, member.given)

    return jax.jit(jax.vmap(of_member), out_shardings=distributed.sharded(mesh))


def make_measure(
    recipe: Recipe, mesh: Mesh
) -> Callable[[Learned, Array, Data], Metrics] | None:
    """The held-out numbers of all members; None for a system that has none.

    Returns:
      `(learned, seeds [S], data) -> metrics`, each `[S]`; every call has the same
      noise.
    """
    if outline(recipe).measure is None:
        return None

    def of_member(inputs: tuple[Learned, Array], data: Data) -> Metrics:
        learned, seed = inputs
        measure = agent(recipe, learned.settings, learned.given).measure
        assert measure is not None
        key = jax.random.fold_in(jax.random.key(seed), MEASURING)
        return measure(learned.own, data, key)

    mapped = distributed.map_members(of_member, mesh)
    return jax.jit(lambda learned, seeds, data: mapped((learned, seeds), data))
