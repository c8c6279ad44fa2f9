"""Members: the seeds of a run times its swept settings, and compiled chunks of updates.

Every array of a run has the S members as its leading axis.  A chunk is
`jit(map over members(scan(update)))` with the state donated and the dataset shared.
The key of an update is `fold_in(train key of the seed, step)`, so that a resumed run
equals an unbroken one bit for bit and no key has to be saved.  Swept settings reach an
agent's maker as traced numbers: one program serves all of their values.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jdql.agents.base import Agent, Carry, Maker, Policy, State
from jdql.config import SWEPT, Config, check_sweep
from jdql.data.dataset import Dataset
from jdql.runtime import distributed
from jdql.types import Array, DataSpec, Float, Int

Row = dict[str, Any]  # {"seed": 0, "agent.eta": 0.5}


class Members(NamedTuple):
    """What distinguishes the S members of a run.

    Attributes:
      seed: `[S]` uint32.
      hyper: float settings of the agent by field name, each `[S]`.
    """

    seed: Int[Array, " S"]
    hyper: dict[str, Float[Array, " S"]]


def rows(config: Config) -> list[Row]:
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


def stacked(members: Sequence[Mapping[str, Any]]) -> Members:
    """The arrays of `rows`, on the host."""
    names = [name for name in members[0] if name.startswith(SWEPT)]
    hyper: dict[str, Any] = {
        name.removeprefix(SWEPT): np.array([m[name] for m in members], np.float32)
        for name in names
    }
    seeds: Any = np.array([member["seed"] for member in members], np.uint32)
    return Members(seeds, hyper)


def settings(members: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The swept settings of each of `rows`, without the seed."""
    return [{n: v for n, v in member.items() if n != "seed"} for member in members]


def listed(members: Sequence[Mapping[str, Any]], values: Iterable[float]) -> str:
    """A value (S,) of every member in one line: by seed, or the mean by setting."""
    groups: dict[str, list[float]] = {}
    for swept, value in zip(settings(members), values, strict=True):
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


def member_config(config: Any, hyper: Mapping[str, Any]) -> Any:
    """An agent's settings with one member's values in place, which may be traced."""
    # Not dataclasses.replace: its __init__ may check types, which tracers do not have.
    changed = copy.copy(config)
    for name, value in hyper.items():
        object.__setattr__(changed, name, value)
    return changed


def member_agent(
    make: Maker, config: Any, spec: DataSpec, hyper: Mapping[str, Any]
) -> Agent:
    """The agent of one member: the settings in `hyper` may be traced numbers."""
    return make(member_config(config, hyper), spec)


def acting_agent(make: Maker, config: Any, spec: DataSpec) -> Agent:
    """An agent that acts by `(policy, hyper)`: every member by its own settings."""

    def act(
        policy: tuple[Policy, dict[str, Array]],
        carry: Carry,
        observation: Any,
        key: Any,
    ) -> tuple[Array, Carry]:
        agent = member_agent(make, config, spec, policy[1])
        return agent.act(policy[0], carry, observation, key)

    return make(config, spec)._replace(act=act)


def check(make: Maker, config: Config, spec: DataSpec, dataset: Dataset) -> None:
    """Refuses a sweep that one program cannot serve.

    Args:
      make: the maker of the agent of `config.agent`.
      config: the run.
      spec: of the dataset.
      dataset: what is trained on; nothing is computed with it.

    Raises:
      ValueError: there is no such setting, its type or use does not allow a sweep, or
        the agent refuses a value.
    """
    check_sweep(config)

    def every_function(hyper: dict[str, Array], dataset: Dataset) -> Any:
        agent = member_agent(make, config.agent, spec, hyper)
        key = jax.random.key(0)
        state, batch = agent.init(key), agent.sample_batch(key, dataset)
        state, _ = agent.update_step(state, batch, agent.draw(key))
        observation = jnp.zeros(spec.observation_dim)
        return agent.act(agent.policy(state), agent.reset(), observation, key)

    for name, values in config.sweep:
        field = name.removeprefix(SWEPT)
        for value in values:
            make(member_config(config.agent, {field: value}), spec)
        try:
            jax.eval_shape(every_function, {field: jnp.float32(values[0])}, dataset)
        except jax.errors.JAXTypeError:
            raise ValueError(
                f"{name} cannot be swept: the program itself depends on its value. "
                f"Start a run for each value: --config.{name}={values[0]:g}"
            ) from None


def make_init(
    make: Maker, config: Any, spec: DataSpec, mesh: Mesh
) -> Callable[[Members], State]:
    """A function that initialises the states of all members, sharded over `mesh`."""

    def init(member: Members, _: tuple) -> State:
        agent = member_agent(make, config, spec, member.hyper)
        return agent.init(jax.random.split(jax.random.key(member.seed))[0])

    mapped = distributed.map_members(init, mesh)
    return jax.jit(lambda members: mapped(members, ()))


def make_chunk(
    make: Maker, config: Any, spec: DataSpec, mesh: Mesh, length: int
) -> Callable[[State, Members, Dataset], tuple[State, dict[str, Array]]]:
    """A compiled function that makes `length` updates of every member.

    Returns:
      `(states, members, dataset) -> (states, metrics)`; the states are donated, and
      each metric is `[S, length]`.
    """

    def member_chunk(inputs: tuple[State, Members], dataset: Dataset):
        state, member = inputs
        agent = member_agent(make, config, spec, member.hyper)
        train_key = jax.random.split(jax.random.key(member.seed))[1]

        def update(state: State, _: None):
            key = jax.random.fold_in(train_key, state.step)
            batch_key, draw_key = jax.random.split(key)
            batch = agent.sample_batch(batch_key, dataset)
            return agent.update_step(state, batch, agent.draw(draw_key))

        return jax.lax.scan(update, state, None, length=length)

    mapped = distributed.map_members(member_chunk, mesh)

    def chunk(states: State, members: Members, dataset: Dataset):
        return mapped((states, members), dataset)

    return jax.jit(chunk, donate_argnums=distributed.donated(mesh, 0))
