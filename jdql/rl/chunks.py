"""Action chunks: h actions are chosen together, valued together and carried out.

Li, Zhou & Levine 2025 (QC, arXiv:2507.07969).  A critic of chunks needs no correction
for its h-step return, since all h actions are its argument.  With h = 1 everything
here is ordinary one-step learning.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jdql.rl.targets import td_target
from jdql.types import Array, Chunk, Float


def chunk_return(
    reward: Float[Array, "B h"], gamma: float | Float[Array, ""]
) -> Float[Array, " B"]:
    """sum_i gamma^i r_i, i = 0..h-1; rewards after an episode's end must be 0."""
    return jnp.sum(reward * gamma ** jnp.arange(reward.shape[1]), axis=1)


def chunk_target(
    batch: Chunk, next_value: Float[Array, " B"], gamma: float | Float[Array, ""]
) -> Float[Array, " B"]:
    """sum_i gamma^i r_i + gamma^h mask V(s_h): the target of a chunk's value.

    A true end inside the chunk ends the sum, and nothing is bootstrapped.  For chunks
    that a time-out cuts the target is wrong (the next value is not h steps away):
    `critic_weight` leaves them out.

    Args:
      batch: chunks.
      next_value: value of the observation after each chunk.
      gamma: the agent's discount factor, in [0, 1].
    """
    h = batch.reward.shape[1]
    total = chunk_return(batch.reward, gamma)
    return td_target(total, batch.mask, next_value, gamma**h)


def critic_weight(batch: Chunk, cut_chunks: bool = False) -> Float[Array, " B"]:
    """1 for the chunks that the critic learns from, 0 for the others.

    QC learns from those whose h steps are all valid: a chunk that goes beyond its
    episode's end, true or not, is dropped.

    Args:
      batch: chunks.
      cut_chunks: learn also from chunks that a true end cuts short.  Their return is
        known whatever the rest of the actions, which repeat the last.
    """
    whole = batch.valid[:, -1]
    return jnp.maximum(whole, 1.0 - batch.mask) if cut_chunks else whole


def chunk_critic_loss(
    q: Float[Array, "M B"], target: Float[Array, " B"], weight: Float[Array, " B"]
) -> Float[Array, ""]:
    """mean of weight (Q - y)^2 over members and batch, dropped chunks included."""
    return jnp.mean(weight * jnp.square(q - target))


def chunk_td_loss(
    q: Float[Array, "M B"],
    batch: Chunk,
    next_value: Float[Array, " B"],
    gamma: float | Float[Array, ""],
    cut_chunks: bool = False,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The critics' loss on a batch of chunks, and what is worth a look.

    Args:
      q: values of the batch's chunks by each of M critics.
      batch: chunks.
      next_value: value of the observation after each chunk; no gradient through it.
      gamma: the agent's discount factor, in [0, 1].
      cut_chunks: see `critic_weight`.
    """
    target = jax.lax.stop_gradient(chunk_target(batch, next_value, gamma))
    weight = critic_weight(batch, cut_chunks)
    metrics = {"q_mean": jnp.mean(q), "chunks_used": jnp.mean(weight)}
    return chunk_critic_loss(q, target, weight), metrics


def action_mask(batch: Chunk) -> Float[Array, "B D"]:
    """1 for the numbers of the flattened chunk that are data, D = h A."""
    return jnp.repeat(batch.valid, batch.action.shape[-1], axis=1)


def flat_action(batch: Chunk) -> Float[Array, "B D"]:
    """The chunk as one action, the first step first, D = h A."""
    return batch.action.reshape(len(batch.action), -1)


def masked_error(batch: Chunk) -> Callable[[Array], Array]:
    """The cloning error of chunks: mean square over D, `[B, D] -> [B]`.

    The numbers behind the end of an episode count as 0; the mean is over all D = h A.
    """
    mask = action_mask(batch)
    return lambda error: jnp.mean(jnp.square(mask * error), axis=-1)
