"""Constraints on samples, and denoisers that obey them.

Two kinds meet in a chain.  Bounds on x_0 (`clip_to`) hold for its estimates, while a
noisy sample may leave them.  A clamp (`inpaint`) holds entries that are known, and
holds them in noisy samples too: there they are given clean, at every noise level.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jdql.types import Array, Bool, Constraint, Denoiser, Float, Real


def clip(x: Float[Array, "*B A"], low: Array, high: Array) -> Float[Array, "*B A"]:
    """`x` within [low, high]; the gradient is 1 inside and exactly at a bound, else 0.

    `jnp.clip` halves the gradient at a bound.  PyTorch, in which the authors of
    Diffusion-QL wrote, does not, and dataset actions lie on the bounds often.
    """
    return jnp.where((x >= low) & (x <= high), x, jnp.clip(x, low, high))


def unconstrained(x: Float[Array, "*B A"]) -> Float[Array, "*B A"]:
    """The constraint that allows everything."""
    return x


def clip_to(low: Array, high: Array) -> Constraint:
    """The constraint `low <= x <= high`."""
    return lambda x: clip(x, low, high)


def inpaint(
    mask: Bool[Array | np.ndarray, "..."], values: Float[Array | np.ndarray, "..."]
) -> Constraint:
    """The clamp that holds the entries under `mask` at `values` (Janner et al. 2022).

    Samples are right only if the network was trained with such a clamp in its loss
    (`losses.denoising_loss`): then it estimates x_0 given the held entries.  A network
    that has seen noise in their place draws from another law, with far too much spread
    beside the held entries.

    Args:
      mask: true where an entry is held; broadcasts against samples, so that `[H, A]`
        is one pattern for the whole batch.
      values: the clean values, of a shape that broadcasts likewise; read under the
        mask alone.
    """

    def clamp(x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.where(mask, jnp.asarray(values, x.dtype), x)

    return clamp


def in_turn(*constraints: Constraint) -> Constraint:
    """The constraint that applies each in turn; the last one holds exactly."""

    def apply(x: Float[Array, "*B A"]) -> Float[Array, "*B A"]:
        for constraint in constraints:
            x = constraint(x)
        return x

    return apply


def constrain(denoiser: Denoiser, constraint: Constraint) -> Denoiser:
    """A denoiser whose every estimate of x_0 obeys `constraint`."""

    def constrained(x_k: Float[Array, "*B A"], k: Real[Array, "..."]) -> Array:
        return constraint(denoiser(x_k, k))

    return constrained
