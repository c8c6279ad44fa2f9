"""Policy-improvement terms."""

from __future__ import annotations

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
