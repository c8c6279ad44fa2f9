"""What the readers of all kinds of recorded systems have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdql.rl import selection
from jdql.types import Transition
from tests.agents.recorded.files import Arrays, tree

Models = dict[str, tuple[Any, Any]]  # field of a TrainState -> (parameters, average)


def mlp(arrays: Arrays, prefix: str) -> dict:
    return {"params": tree(arrays, prefix)}


def body(arrays: Arrays, prefix: str) -> dict:
    return {"params": {"body": tree(arrays, prefix)}}


def ensemble(arrays: Arrays, prefix: str) -> dict:
    return {"params": {"q": tree(arrays, prefix)}}


def with_target(load: Callable, arrays: Arrays, prefix: str) -> tuple[Any, Any]:
    return load(arrays, prefix), load(arrays, f"{prefix}_target")


def transitions(arrays: Arrays, i: int) -> Transition:
    ends = "masks" if "batch/masks" in arrays else "not_done"
    named = ("observations", "actions", "rewards", ends, "next_observations")
    return Transition(*(jnp.asarray(arrays[f"batch/{name}"][i]) for name in named))


def observations(arrays: Arrays, count: int) -> jax.Array:
    return jnp.repeat(jnp.asarray(arrays["act/observation"]), count, axis=0)


def nothing(*inputs: Any) -> dict[str, Any]:
    return {}


def greedily(actions: jax.Array, q: jax.Array) -> jax.Array:
    """The best candidate."""
    return selection.take(actions, selection.greedy(jax.random.key(0), q))


class System(NamedTuple):
    """How the files of one kind are read, and what is compared with them.

    Attributes:
      module: of `jdql.agents`.
      models: `(arrays, "init" or "final") -> {field: (parameters, average or ())}`.
      draws: `(reader, arrays, config) -> draws` of one update.
      act: `(parts, learned, arrays, reader) -> {name behind act/: value}`.
      parts: `(arrays, config) -> parts`, with the tables of the file; by default those
        of the settings.
      batch: `(arrays, update) -> batch`.
      more: `(parts, old state, new state, batch, draws) -> metrics` beside the logged.
      left_out: metrics of what they have and we do not.
      renamed: names of their settings -> names of ours, where they differ.
      tolerance: of metrics.
    """

    module: Any
    models: Callable[[Arrays, str], Models]
    draws: Callable[..., Any]
    act: Callable[..., dict[str, Any]]
    parts: Callable[..., Any] | None = None
    batch: Callable[[Arrays, int], Any] = transitions
    more: Callable[..., dict[str, Any]] = nothing
    left_out: tuple[str, ...] = ()
    renamed: Mapping[str, str] = MappingProxyType({})
    tolerance: float = 2e-5
