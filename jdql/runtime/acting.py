"""Acting for many rows at once: S members (seeds) x E episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jdql.agents.base import Agent, Carry, Policy
from jdql.runtime import distributed
from jdql.types import Array

EVALUATION = 0x6576616C  # folded into a member's key: acting never repeats its training


class Rows(NamedTuple):
    """What acting needs: of one member inside the map, stacked over S outside.

    `order[:count]` are the numbers of the rows that are still running.
    """

    policy: Policy
    observation: Any  # (E, O)
    keys: Any  # (E,)
    order: Any  # (E,)
    count: Any  # ()


def batched(agent: Agent, mesh: Mesh) -> Callable[..., tuple[Array, Carry]]:
    """Acting for all rows: one after another on each CPU core, all at once elsewhere.

    Args:
      agent: whose `act` it is.
      mesh: devices that share the members.

    Returns:
      `(rows, carries, t) -> (actions, carries)`, stacked (S, E, ...), jitted; the
      carries are donated.

    How a vectorised matrix product rounds may depend on the number of rows; a loop over
    rows has one fixed shape whatever runs beside them, and a core gains nothing from
    vectorising 50 candidates further.
    """
    of_member = _looped_act if distributed.on_cpu() else _vectorised_act

    def on_member(member: tuple[Rows, Carry], t: Array) -> tuple[Array, Carry]:
        rows, carries = member
        return of_member(agent, rows, carries, t)

    mapped = distributed.map_members(on_member, mesh)

    def act(rows: Rows, carries: Carry, t: Array) -> tuple[Array, Carry]:
        return mapped((rows, carries), t)

    return jax.jit(act, donate_argnums=distributed.donated(mesh, 1))


def _looped_act(
    agent: Agent, rows: Rows, carries: Carry, t: Array
) -> tuple[Array, Carry]:
    """Actions (E, A) of one member's running rows; the others' are 0."""

    def one(e: Array) -> tuple[Array, Carry]:
        carry = jax.tree.map(lambda c: c[e], carries)
        key = jax.random.fold_in(rows.keys[e], t)
        return agent.act(rows.policy, carry, rows.observation[e], key)

    def row(i: Array, outputs: tuple[Array, Carry]) -> tuple[Array, Carry]:
        e = rows.order[i]
        return jax.tree.map(lambda every, new: every.at[e].set(new), outputs, one(e))

    action, _ = jax.eval_shape(one, jnp.int32(0))
    actions = jnp.zeros((len(rows.order), *action.shape), action.dtype)
    return jax.lax.fori_loop(0, rows.count, row, (actions, carries))


def _vectorised_act(
    agent: Agent, rows: Rows, carries: Carry, t: Array
) -> tuple[Array, Carry]:
    """Actions (E, A) of all of one member's rows.

    Finished ones are computed too: a fixed shape costs an accelerator less than a new
    one for every number of rows.
    """
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.keys, t)
    return jax.vmap(agent.act, in_axes=(None, 0, 0, 0))(
        rows.policy, carries, rows.observation, keys
    )


def episode_keys(seeds: Sequence[int], episodes: Sequence[int]) -> Array:
    """One key per row, (S, E); `fold_in(key, t)` gives that of environment step t."""
    return _every_row(np.asarray(seeds, np.uint32), np.asarray(episodes, np.uint32))


@jax.jit  # here, so that one compilation serves every evaluation
def _every_row(seeds: Array, episodes: Array) -> Array:
    def row(seed: Array, episode: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        return jax.random.fold_in(key, episode)

    every_episode = jax.vmap(row, in_axes=(None, 0))
    return jax.vmap(every_episode, in_axes=(0, None))(seeds, episodes)


def stacked(carry: Carry, shape: tuple[int, int]) -> Carry:
    """The carry of an episode's start for every row, (S, E, ...)."""
    return jax.tree.map(lambda c: jnp.broadcast_to(c, shape + jnp.shape(c)), carry)
