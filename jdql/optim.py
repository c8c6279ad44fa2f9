"""Optimisers, gradient steps and averages of parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jdql.types import Array, Float, Params


def adam(
    learning_rate: float | Float[Array, ""],
    grad_norm: float | Float[Array, ""] | None = None,
) -> optax.GradientTransformation:
    """Adam as PyTorch has it, after clipping to one joint gradient norm.

    Args:
      learning_rate: step size.
      grad_norm: the largest global norm of the whole gradient; None does not clip.
    """
    clip = (
        optax.identity() if grad_norm is None else optax.clip_by_global_norm(grad_norm)
    )
    return optax.chain(clip, optax.adam(learning_rate, eps=1e-8))


def gradient_step(
    optimizer: optax.GradientTransformation,
    params: Params,
    state: optax.OptState,
    gradients: Params,
) -> tuple[Params, optax.OptState]:
    """One step of `optimizer`: the new parameters and the new optimiser state."""
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def polyak(target: Params, online: Params, rate: float | Array) -> Params:
    """(1 - rate) target + rate online, leaf by leaf."""
    return jax.tree.map(lambda t, o: (1 - rate) * t + rate * o, target, online)


def select(condition: Float[Array, ""] | Array, new: Params, old: Params) -> Params:
    """`new` where the scalar `condition` holds, else `old`, leaf by leaf."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
