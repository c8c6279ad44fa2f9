"""Denoising objectives."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jdql.diffusion.constraints import unconstrained
from jdql.diffusion.process import (
    EPSILON,
    Parameterisation,
    forward_noise,
    from_the_left,
)
from jdql.diffusion.schedules import Schedule
from jdql.types import Array, Constraint, Float, Int


def squared_error(error: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """Mean over the last axis of the squared error."""
    return jnp.mean(jnp.square(error), axis=-1)


def weighted_mean(
    errors: Float[Array, "..."], weights: Float[Array, "..."] | None
) -> Float[Array, ""]:
    """Mean of weights times errors, the weights having the leading axes of the errors.

    Raises:
      ValueError: weights of more axes than the errors.
    """
    if weights is None:
        return jnp.mean(errors)
    return jnp.mean(from_the_left(weights, errors) * errors)


def denoising_loss(
    schedule: Schedule,
    predict: Callable[[Array, Array], Array],
    x0: Float[Array, "B *H A"],
    k: Int[Array, " B"],
    noise: Float[Array, "B *H A"],
    *,
    parameterisation: Parameterisation = EPSILON,
    error: Callable[[Array], Array] = jnp.square,
    weights: Float[Array, "..."] | None = None,
    clamp: Constraint = unconstrained,
) -> Float[Array, ""]:
    """E |predict(x_k, k) - target|^2, a mean over batch and entries.

    Ho et al. 2020, eq. 14; Wang et al. 2023, eq. 2.  Samples are actions `[B, A]`,
    chunks and trajectories `[B, H, A]`, or of any other shape.

    With a clamp the network sees the known entries clean, as it will when sampling,
    and they count as errors of 0: prediction and target are both clamped.  The mean
    is over all entries, so that the loss scales with the share of those not held, as
    in the code of Diffusion Policy and Diffuser.

    Deviation: a network of Diffuser that predicts noise has its output overwritten by
    the clean values there, its target not, which adds a constant to the loss.

    Args:
      schedule: of K steps.
      predict: the network, conditioning closed over.
      x0: clean samples.
      k: diffusion steps in 0..K-1.
      noise: standard normal.
      parameterisation: what `predict` predicts.
      error: of the difference, entry by entry; it may reduce trailing axes.
      weights: multiplies the errors from the left: `[B]` weighs samples, `[B, H]`
        their steps, `[1, H, A]` entries alike in every sample.
      clamp: the in-painting that samples will be drawn with.

    Returns:
      The scalar loss.

    Raises:
      ValueError: weights of more axes than the errors.
    """
    x_k = clamp(forward_noise(schedule, x0, k, noise))
    target = clamp(parameterisation.target(schedule, x0, k, noise))
    errors = error(clamp(predict(x_k, k)) - target)
    return weighted_mean(errors, weights)
