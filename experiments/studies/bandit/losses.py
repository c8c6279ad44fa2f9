"""Likelihood, evidence bound and maximum mean discrepancy, as functions of arrays."""

from __future__ import annotations

import math

import jax.numpy as jnp

from jdql.types import Array, Float

KL_WEIGHT = 0.5  # of the authors' autoencoder (BCQ's)
SIGMA = 20.0  # of the authors' Laplacian kernel (BEAR's)
EPSILON = 1e-6  # below the root: its slope at 0 is infinite


def gaussian_log_prob(
    action: Float[Array, "B A"],
    mean: Float[Array, "B A"],
    log_std: Float[Array, "B A"],
) -> Float[Array, " B"]:
    """Log density of N(mean, diag(std^2)) in nats, summed over dimensions."""
    z = (action - mean) * jnp.exp(-log_std)
    each = -0.5 * jnp.square(z) - log_std - 0.5 * math.log(2 * math.pi)
    return jnp.sum(each, axis=-1)


def kl_to_standard_normal(
    mean: Float[Array, "B L"], log_std: Float[Array, "B L"]
) -> Float[Array, "B L"]:
    """KL(N(mean, std^2) || N(0, 1)) in nats, for each dimension."""
    return 0.5 * (jnp.square(mean) + jnp.exp(2 * log_std) - 1) - log_std


def vae_loss(
    action: Float[Array, "B A"],
    reconstruction: Float[Array, "B A"],
    mean: Float[Array, "B L"],
    log_std: Float[Array, "B L"],
) -> Float[Array, ""]:
    """Squared error plus KL / 2, both averaged over batch and dimensions (BCQ)."""
    error = jnp.mean(jnp.square(reconstruction - action))
    return error + KL_WEIGHT * jnp.mean(kl_to_standard_normal(mean, log_std))


def laplacian_mmd(
    x: Float[Array, "B N A"], y: Float[Array, "B M A"], sigma: float = SIGMA
) -> Float[Array, " B"]:
    """Maximum mean discrepancy of two sets of samples (Kumar et al. 2019, section 5).

    sqrt(E k(x, x') + E k(y, y') - 2 E k(x, y) + 1e-6) with the Laplacian kernel
    k(a, b) = exp(-|a - b|_1 / (2 sigma)); a sample is paired with itself too, so the
    estimate is biased and never below 0.

    Args:
      x: N samples for each of B observations.
      y: M samples for each.
      sigma: width of the kernel, in units of the samples.
    """

    def kernel_mean(a: Array, b: Array) -> Array:
        distance = jnp.sum(jnp.abs(a[:, :, None] - b[:, None]), axis=-1)
        return jnp.mean(jnp.exp(-distance / (2.0 * sigma)), axis=(1, 2))

    square = kernel_mean(x, x) + kernel_mean(y, y) - 2.0 * kernel_mean(x, y)
    return jnp.sqrt(square + EPSILON)
