"""Best of N: several actions are proposed, and one of them is chosen by its value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdql.checks import at_least, one_of
from jdql.rl.expectile import expectile_weight
from jdql.types import Array, Float, Int, PRNGKeyArray

# (key, score of each candidate [N]) -> index of the chosen one.  The key is consumed.
Selection = Callable[[PRNGKeyArray, Array], Array]


def greedy(key: PRNGKeyArray, score: Float[Array, " N"]) -> Int[Array, ""]:
    """The candidate of the largest value."""
    del key
    return jnp.argmax(score)


def choice_probabilities(
    score: Float[Array, " N"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, " N"]:
    """softmax(score / temperature), the law of `softmax` for a positive temperature."""
    return jax.nn.softmax(score / temperature)


def softmax(temperature: float | Float[Array, ""] = 1.0) -> Selection:
    """Draws by softmax of the scores over a temperature; takes the best at 0.

    Values are on their raw scale: where they differ by hundreds, temperature 1 is
    nearly a maximum, and where rewards are tiny it is nearly uniform.

    Args:
      temperature: at least 0, in units of value.
    """
    greedily = jnp.asarray(temperature) == 0

    def select(key: PRNGKeyArray, score: Float[Array, " N"]) -> Array:
        drawn = jax.random.categorical(
            key, score / jnp.where(greedily, 1.0, temperature)
        )
        return jnp.where(greedily, jnp.argmax(score), drawn)

    return select


def implicit(expectile: float | Float[Array, ""]) -> Selection:
    """Draws in proportion to |tau - 1[A < 0]|: the implicit policy of IQL.

    Importance resampling of the behaviour policy's actions (Hansen-Estruch et al. 2023,
    algorithm 3).  Scores are advantages, A = Q - V.

    Args:
      expectile: tau, in (0, 1), that V was learned with.
    """

    def select(key: PRNGKeyArray, score: Float[Array, " N"]) -> Array:
        return jax.random.categorical(key, jnp.log(expectile_weight(score, expectile)))

    return select


def of_advantages(name: str, expectile: float | Float[Array, ""]) -> Selection:
    """The selection called "best" (`greedy`) or "implicit", of advantages.

    Raises:
      ValueError: there is none.
    """
    return one_of("selection", name, {"best": greedy, "implicit": implicit(expectile)})


def take(
    actions: Float[Array, "*B N A"], index: Int[Array, "*B"]
) -> Float[Array, "*B A"]:
    """The chosen one of each group of N actions."""
    return jnp.take_along_axis(actions, index[..., None, None], axis=-2)[..., 0, :]


def best_of(
    count: int,
    propose: Callable[[Any, Array, PRNGKeyArray], Array],
    score: Callable[[Any, Array, Array], Array],
    select: Selection,
) -> Callable[[Any, Array, PRNGKeyArray], Array]:
    """A policy that proposes `count` actions for a state and carries one of them out.

    Args:
      count: N.
      propose: `(learned, observations [N, O], key) -> actions [N, A]`.
      score: `(learned, observations [N, O], actions [N, A]) -> [N]`.
      select: chooses by the scores.

    Returns:
      `(learned, observation [O], key) -> action [A]`.

    Raises:
      ValueError: for fewer than one candidate.
    """
    at_least("candidates", count)

    def plan(learned: Any, observation: Float[Array, " O"], key: PRNGKeyArray) -> Array:
        propose_key, select_key = jax.random.split(key)
        repeated = jnp.broadcast_to(observation, (count, *observation.shape))
        actions = propose(learned, repeated, propose_key)
        return take(actions, select(select_key, score(learned, repeated, actions)))

    return plan
