"""Optimisers, gradient steps and averages of parameters."""

from __future__ import annotations

from collections.abc import Callable

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
    return optax.chain(_clip(grad_norm), optax.adam(learning_rate, eps=1e-8))


def adamw(
    learning_rate: float | Float[Array, ""],
    decay_steps: int,
    weight_decay: float | Float[Array, ""] = 0.0,
    grad_norm: float | Float[Array, ""] | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay and a rate that falls as half a cosine.

    Only matrices decay, not biases or the scales of normalisation (Loshchilov & Hutter
    2019, eqs. 12 and 14).

    Args:
      learning_rate: step size of the first update.
      decay_steps: updates until it is 0, where it stays.
      weight_decay: share of a weight that goes for each unit of the step size.
      grad_norm: as in `adam`.

    Raises:
      ValueError: for fewer than one step.
    """
    if decay_steps < 1:
        raise ValueError(f"decay_steps must be at least 1, got {decay_steps}")

    def matrices(params: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    rate = optax.cosine_decay_schedule(learning_rate, decay_steps)
    decaying = optax.adamw(rate, weight_decay=weight_decay, mask=matrices)
    return optax.chain(_clip(grad_norm), decaying)


def _clip(grad_norm: float | Float[Array, ""] | None) -> optax.GradientTransformation:
    if grad_norm is None:
        return optax.identity()
    return optax.clip_by_global_norm(grad_norm)


def gradient_step(
    optimizer: optax.GradientTransformation,
    params: Params,
    state: optax.OptState,
    gradients: Params,
) -> tuple[Params, optax.OptState]:
    """One step of `optimizer`: the new parameters and the new optimiser state."""
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def descend(
    optimizer: optax.GradientTransformation,
    params: Params,
    state: optax.OptState,
    objective: Callable[[Params], Float[Array, ""]],
) -> tuple[Params, optax.OptState, Float[Array, ""]]:
    """One step of `optimizer` down the gradient of `objective`.

    Returns:
      The new parameters, the new optimiser state, and the objective before the step.
    """
    value, gradients = jax.value_and_grad(objective)(params)
    return *gradient_step(optimizer, params, state, gradients), value


def polyak(target: Params, online: Params, rate: float | Array) -> Params:
    """(1 - rate) target + rate online, leaf by leaf."""
    return jax.tree.map(lambda t, o: (1 - rate) * t + rate * o, target, online)


def select(condition: Float[Array, ""] | Array, new: Params, old: Params) -> Params:
    """`new` where the scalar `condition` holds, else `old`, leaf by leaf."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
