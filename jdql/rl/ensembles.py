"""How the values of an ensemble of critics become one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp

from jdql.checks import one_of
from jdql.types import Array

# [M, ...] -> [...]
AGGREGATES: dict[str, Callable[[Array], Array]] = {
    "mean": functools.partial(jnp.mean, axis=0),
    "min": functools.partial(jnp.min, axis=0),
}


def aggregate(name: str) -> Callable[[Array], Array]:
    """The function `[M, ...] -> [...]` of that name, "mean" or "min".

    Raises:
      ValueError: there is none.
    """
    return one_of("q_agg", name, AGGREGATES)
