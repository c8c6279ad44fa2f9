"""Choosing one of several candidate actions by value."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jdql.types import Array, Float, Int, PRNGKeyArray


def choice_probabilities(
    q: Float[Array, " N"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, " N"]:
    """softmax(q / temperature), the law of `choose` for a positive temperature."""
    return jax.nn.softmax(q / temperature)


def choose(
    key: PRNGKeyArray,
    q: Float[Array, " N"],
    temperature: float | Float[Array, ""] = 1.0,
) -> Int[Array, ""]:
    """An index drawn from softmax(q / temperature); the best one at temperature 0.

    Values are on their raw scale: where they differ by hundreds, temperature 1 is
    nearly a maximum, and where rewards are tiny it is nearly uniform.  The key is
    consumed.

    Args:
      key: random key.
      q: values of the candidates.
      temperature: at least 0, in units of value.
    """
    greedy = jnp.asarray(temperature) == 0
    drawn = jax.random.categorical(key, q / jnp.where(greedy, 1.0, temperature))
    return jnp.where(greedy, jnp.argmax(q), drawn)
