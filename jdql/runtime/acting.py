"""Acting for many episodes at once: S members (seeds) x E episodes in lock-step.

A policy sees the last C observations and plans h actions.  `Player` keeps both: it
hands out the actions of a plan one by one and asks the policy again only where none is
left.  It does so on the host, so that all kinds of devices plan equally seldom.  Where
a plan has rows that are no actions (`Acting.follow`), each is turned into one when it
is handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jdql.agents.base import Acting, Carry, Learned
from jdql.runtime import distributed
from jdql.types import Array

EVALUATION = 0x6576616C  # folded into a member's key: acting never repeats its training


class Inputs(NamedTuple):
    """What planning needs: of one member inside the map, stacked over S outside.

    Attributes:
      learned: of the member.
      observations: `[E, C, O]`, the last ones of each episode.
      keys: `[E]`, one key an episode.
      steps: `[E]`, the environment step of each, folded into its key.
      order: `[E]`, the numbers of the episodes, those that plan first.
      count: how many plan.
    """

    learned: Learned
    observations: Any
    keys: Any
    steps: Any
    order: Any
    count: Any


class Rows(NamedTuple):
    """What following plans needs: of one member inside the map, stacked over S outside.

    Attributes:
      learned: of the member.
      rows: `[E, W]`, of each episode's plan the one whose turn it is.
      observations: `[E, O]`, the current ones.
      order: `[E]`, the numbers of the episodes, those that act first.
      count: how many act.
    """

    learned: Learned
    rows: Any
    observations: Any
    order: Any
    count: Any


def planner(acting: Acting, mesh: Mesh) -> Callable[..., tuple[Array, Carry]]:
    """Planning for all episodes that need it: `(Inputs, carries) -> (plans, carries)`.

    Plans are `[S, E, h, W]`, carries stacked `[S, E, ...]` and donated.  A CPU core
    plans for one episode after another: how a vectorised matrix product rounds may
    depend on the number of rows, a loop has one fixed shape whatever runs beside it,
    and a core gains nothing from vectorising 50 candidates further.  An accelerator
    plans for all at once, also where that is not needed: a fixed shape costs it less
    than a new one for every number of episodes.
    """
    of_member = _looped if distributed.on_cpu() else _vectorised

    def on_member(member: tuple[Inputs, Carry], _: tuple) -> tuple[Array, Carry]:
        return of_member(acting, *member)

    mapped = distributed.map_members(on_member, mesh)

    def plan(inputs: Inputs, carries: Carry) -> tuple[Array, Carry]:
        return mapped((inputs, carries), ())

    return jax.jit(plan, donate_argnums=distributed.donated(mesh, 1))


def _looped(acting: Acting, inputs: Inputs, carries: Carry) -> tuple[Array, Carry]:
    """Plans [E, h, W] of one member's episodes that plan; the others' are 0."""

    def one(e: Array) -> tuple[Array, Carry]:
        carry, observations, key, step = distributed.pick(
            (carries, inputs.observations, inputs.keys, inputs.steps), e
        )
        key = jax.random.fold_in(key, step)
        return acting.act(inputs.learned, carry, observations, key)

    plan, _ = jax.eval_shape(one, jnp.int32(0))
    plans = jnp.zeros((len(inputs.order), *plan.shape), plan.dtype)
    return _for_all_due(one, inputs, (plans, carries))


def _for_all_due(
    one: Callable[[Array], Any], inputs: Inputs | Rows, outputs: Any
) -> Any:
    """`outputs`, [E, ...], with `one(e)` in the place of each episode e that is due."""

    def episode(i: Array, outputs: Any) -> Any:
        e = distributed.pick(inputs.order, i)
        return jax.tree.map(lambda every, new: every.at[e].set(new), outputs, one(e))

    return jax.lax.fori_loop(0, inputs.count, episode, outputs)


def _vectorised(acting: Acting, inputs: Inputs, carries: Carry) -> tuple[Array, Carry]:
    """Plans [E, h, W] of all of one member's episodes; carries move where one plans."""
    keys = jax.vmap(jax.random.fold_in)(inputs.keys, inputs.steps)
    plans, moved = jax.vmap(acting.act, in_axes=(None, 0, 0, 0))(
        inputs.learned, carries, inputs.observations, keys
    )
    place = jnp.argsort(inputs.order)  # of each episode in the order
    return plans, _where(place < inputs.count, moved, carries)


def follower(acting: Acting, mesh: Mesh) -> Callable[[Rows], Array] | None:
    """The actions `[S, E, A]` of rows of plans; None where the rows are actions.

    A CPU core follows one episode's plan after another, an accelerator all at once, for
    the reasons that `planner` gives.
    """
    follow = acting.follow
    if follow is None:
        return None

    def in_turn(member: Rows, _: tuple) -> Array:
        def one(e: Array) -> Array:
            picked = distributed.pick((member.rows, member.observations), e)
            return follow(member.learned, *picked)

        action = jax.eval_shape(one, jnp.int32(0))
        none = jnp.zeros((len(member.order), *action.shape), action.dtype)
        return _for_all_due(one, member, none)

    def at_once(member: Rows, _: tuple) -> Array:
        of_episodes = jax.vmap(follow, in_axes=(None, 0, 0))
        return of_episodes(member.learned, member.rows, member.observations)

    mapped = distributed.map_members(in_turn if distributed.on_cpu() else at_once, mesh)
    return jax.jit(lambda rows: mapped(rows, ()))


def _where(mask: Any, new: Carry, old: Carry) -> Carry:
    """`new` in the leading positions of `mask`, else `old`, leaf by leaf."""

    def choose(n: Array, o: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (n.ndim - mask.ndim)), n, o)

    return jax.tree.map(choose, new, old)


def episode_keys(seeds: Sequence[int], episodes: Sequence[int]) -> Array:
    """One key per episode, (S, E); `fold_in(key, t)` gives that of step t."""
    return _every_key(np.asarray(seeds, np.uint32), np.asarray(episodes, np.uint32))


@jax.jit  # here, so that one compilation serves every evaluation
def _every_key(seeds: Array, episodes: Array) -> Array:
    def one(seed: Array, episode: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        return jax.random.fold_in(key, episode)

    every_episode = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(every_episode, in_axes=(0, None))(seeds, episodes)


class Player:
    """Carries the plans of S x E episodes out.

    It remembers the last observations, what is left of each plan and what the policy
    carries along; each episode stands alone.
    """

    def __init__(
        self,
        acting: Acting,
        seeds: Sequence[int],
        episodes: Sequence[int],
        mesh: Mesh,
    ) -> None:
        """Compiles nothing yet.

        Args:
          acting: a policy on the environment's scale, as of `recipe.acting`.
          seeds: of the S members.
          episodes: the numbers of the E episodes of each.
          mesh: devices that share the members.
        """
        self._shape = (len(seeds), len(episodes))
        self._shard = distributed.sharded(mesh)
        self._history, self._plan = acting.history, planner(acting, mesh)
        self._follow = follower(acting, mesh)
        self._keys = jax.device_put(episode_keys(seeds, episodes), self._shard)
        self._first = acting.reset

    def _initial(self) -> Carry:
        """What the policy carries at the start of every episode, (S, E, ...)."""
        # Made anew each time, since planning may give its carries away.
        carry = jax.tree.map(
            lambda c: jnp.broadcast_to(c, self._shape + jnp.shape(c)), self._first()
        )
        return jax.device_put(carry, self._shard)

    def start(self, learned: Learned) -> None:
        """Begins all episodes with what the S members have learned."""
        self._learned = jax.device_put(learned, self._shard)
        self._carries = self._initial()
        self._steps = np.zeros(self._shape, np.int32)
        self._left = np.zeros(self._shape, np.int32)
        self._seen: NDArray[np.float32] | None = None
        self._plans: NDArray[np.float32] | None = None

    def reset(self, begun: NDArray[np.bool_]) -> None:
        """Begins the episodes in `begun`, (S, E), anew; the others go on."""
        self._carries = _where(begun, self._initial(), self._carries)
        self._steps[begun] = self._left[begun] = 0

    def __call__(
        self, observation: NDArray[np.float32], live: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Actions (S, E, A) for the current observations (S, E, O).

        Args:
          observation: of every episode, on the environment's scale.
          live: the episodes that act, (S, E); the actions of the others mean nothing.
        """
        self._remember(observation)
        planning = live & (self._left == 0)
        if planning.any():
            self._renew(planning)
        assert self._plans is not None
        length = self._plans.shape[2]
        index = (length - self._left)[..., None, None] % length
        rows = np.take_along_axis(self._plans, index, axis=2)[:, :, 0]
        self._steps[live] += 1
        self._left[live] -= 1
        if self._follow is None:
            return rows
        inputs = Rows(self._learned, rows, observation, *_those_first(live))
        return np.asarray(self._follow(inputs))

    def _remember(self, observation: NDArray[np.float32]) -> None:
        """Puts the observation behind the last ones; a first one fills all places."""
        new = observation[:, :, None]
        if self._history == 1:
            self._seen = new
            return
        filled = np.repeat(new, self._history, axis=2)
        if self._seen is None:
            self._seen = filled
            return
        moved = np.concatenate([self._seen[:, :, 1:], new], axis=2)
        first = (self._steps == 0)[..., None, None]
        self._seen = np.where(first, filled, moved)

    def _renew(self, planning: NDArray[np.bool_]) -> None:
        """Plans for the episodes in `planning`."""
        inputs = Inputs(
            self._learned,
            self._seen,
            self._keys,
            self._steps,
            *_those_first(planning),
        )
        output, self._carries = self._plan(inputs, self._carries)
        plans = np.asarray(output)
        if self._plans is None:
            self._plans = np.zeros_like(plans)
        self._plans = np.where(planning[..., None, None], plans, self._plans)
        self._left[planning] = plans.shape[2]


def _those_first(
    chosen: NDArray[np.bool_],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The numbers of all episodes, those in `chosen` first, and how many those are."""
    order = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    return order, chosen.sum(axis=1).astype(np.int32)
