"""Temporal-difference targets."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jdql.types import Array, Float, Transition


def td_target(
    reward: Float[Array, " B"],
    mask: Float[Array, " B"],
    next_value: Float[Array, " B"],
    gamma: float | Float[Array, ""],
) -> Float[Array, " B"]:
    """r + gamma mask V(s'): the one-step target.

    Args:
      reward: of the step.
      mask: 0 at true terminations, 1 elsewhere (time-outs included).
      next_value: value of the next observation.
      gamma: the agent's discount factor, in [0, 1].
    """
    return reward + gamma * mask * next_value


def clipped_double_q(q: Float[Array, "M *B"]) -> Float[Array, "*B"]:  # noqa: F821
    """The smallest member's value (Fujimoto et al. 2018, eq. 10)."""
    return jnp.min(q, axis=0)


def lower_confidence_bound(
    q: Float[Array, "M *B"],  # noqa: F821
    rho: float | Float[Array, ""],
) -> Float[Array, "*B"]:
    """mean - rho std over the members, with divisor M (Ghasemipour et al. 2022).

    Args:
      q: values of an ensemble.
      rho: 0 is the mean; the larger, the more pessimistic.
    """
    return jnp.mean(q, axis=0) - rho * jnp.std(q, axis=0)


def max_q_backup(q: Float[Array, "M B N"]) -> Float[Array, " B"]:
    """The maximum over N actions of each member, then the smallest member.

    With N = 1 it is `clipped_double_q`.

    The order matters: it is not the best action's clipped value (Kumar et al. 2020,
    appendix F; the authors' code of Diffusion-QL).
    """
    return jnp.min(jnp.max(q, axis=-1), axis=0)


def critic_loss(
    q: Float[Array, "M B"],
    target: Float[Array, " B"],
    over_critics: Callable[[Array], Array] = jnp.sum,
) -> Float[Array, ""]:
    """Mean squared error of each critic, summed up (Wang et al. 2023, eq. 4).

    Args:
      q: values of the critics.
      target: what all of them regress to; no gradient passes through it.
      over_critics: `jnp.sum`, or `jnp.mean` as some authors have it.
    """
    error = q - jax.lax.stop_gradient(target)
    return over_critics(jnp.mean(jnp.square(error), axis=-1))


def td_loss(
    q: Float[Array, "M B"],
    batch: Transition,
    next_value: Float[Array, " B"],
    gamma: float | Float[Array, ""],
    over_critics: Callable[[Array], Array] = jnp.sum,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """`critic_loss` against `td_target`, and the mean of Q.

    Args:
      q: values of the batch's actions by each critic.
      batch: transitions.
      next_value: value of the next observations; no gradient passes through it.
      gamma: the agent's discount factor, in [0, 1].
      over_critics: see `critic_loss`.
    """
    target = td_target(batch.reward, batch.mask, next_value, gamma)
    return critic_loss(q, target, over_critics), {"q_mean": jnp.mean(q)}
