"""Denoising objectives."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jdql.diffusion.process import EPSILON, Parameterisation, forward_noise
from jdql.diffusion.schedules import Schedule
from jdql.types import Array, Float, Int


def squared_error(error: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """Mean over the last axis of the squared error."""
    return jnp.mean(jnp.square(error), axis=-1)


def absolute_error(error: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """Mean over the last axis of the absolute error."""
    return jnp.mean(jnp.abs(error), axis=-1)


def denoising_loss(
    schedule: Schedule,
    predict: Callable[[Array, Array], Array],
    x0: Float[Array, "B A"],
    k: Int[Array, " B"],
    noise: Float[Array, "B A"],
    *,
    parameterisation: Parameterisation = EPSILON,
    error: Callable[[Array], Array] = squared_error,
    weights: Float[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """E |predict(x_k, k) - target|^2, a mean over batch and dimensions.

    Ho et al. 2020, eq. 14; Wang et al. 2023, eq. 2.

    Args:
      schedule: of K steps.
      predict: the network, conditioning closed over.
      x0: clean samples.
      k: diffusion steps in 0..K-1.
      noise: standard normal.
      parameterisation: what `predict` predicts.
      error: `[B, A] -> [B]`.
      weights: multiplies the error of each sample.

    Returns:
      The scalar loss.
    """
    x_k = forward_noise(schedule, x0, k, noise)
    target = parameterisation.target(schedule, x0, k, noise)
    errors = error(predict(x_k, k) - target)
    return jnp.mean(errors if weights is None else weights * errors)
