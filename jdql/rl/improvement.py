"""Policy-improvement terms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jdql.types import Array, Bool, Float


def normalised_q_loss(
    q: Float[Array, "2 B"], first: Bool[Array, ""]
) -> Float[Array, ""]:
    """-mean(Q_i) / mean|Q_j|: raise one critic, in units of the other.

    The scale is detached and comes from the head that is not being raised, as in the
    authors' code (Wang et al. 2023, section 3: alpha = eta / E|Q|).

    Args:
      q: both heads at the policy's actions.
      first: raise Q_1 and normalise by Q_2; else the other way round.

    Returns:
      The scalar loss, to be multiplied by eta.
    """
    raised = jnp.where(first, q[0], q[1])
    scale = jnp.where(first, q[1], q[0])
    return -jnp.mean(raised) / jax.lax.stop_gradient(jnp.mean(jnp.abs(scale)))


def self_normalised_q_loss(
    q: Float[Array, " B"], share: float | Float[Array, " B"] = 1.0
) -> Float[Array, ""]:
    """-mean(Q) / mean|Q|: raise a critic, in units of itself.

    As in the authors' code of EDP (Kang et al. 2023); Diffusion-QL takes its scale from
    the other critic.  The scale is detached.

    Args:
      q: one head at the policy's actions.
      share: weight of each action in both means, at least 0.  Where no action has a
        positive one the loss is 0.

    Returns:
      The scalar loss, to be multiplied by eta.
    """
    scale = jax.lax.stop_gradient(jnp.mean(share * jnp.abs(q)))
    return -jnp.mean(share * q) / jnp.where(scale > 0, scale, 1.0)


def weighted_likelihood_loss(
    log_likelihood: Float[Array, " B"], weight: Float[Array, " B"]
) -> Float[Array, ""]:
    """-mean(w log pi(a | s)) over actions of the data, the weights being detached.

    Weighted behaviour cloning (Peng et al. 2019; Kostrikov et al. 2022, eq. 7).
    """
    return -jnp.mean(jax.lax.stop_gradient(weight) * log_likelihood)


def dual_ascent(
    eta: Float[Array, ""],
    rate: float | Float[Array, ""],
    excess: Float[Array, ""],
    bounds: tuple[Any, Any],
) -> Float[Array, ""]:
    """eta + rate clip(excess, -1, 1), within its bounds (Fang et al. 2025).

    Args:
      eta: the multiplier.
      rate: of the ascent.
      excess: of the cloning loss over what is allowed.
      bounds: the smallest and the largest eta.
    """
    return jnp.clip(eta + rate * jnp.clip(excess, -1, 1), *bounds)
