"""The matrix product of the networks, in the precision that JAX is set to."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jdql.types import Array, Float


def product(x: Float[Array, "*B I"], w: Float[Array, "I F"]) -> Float[Array, "*B F"]:
    """x W, obeying `jax_default_matmul_precision`.

    Accelerators obey it by themselves.  XLA's CPU backend does not, so that bfloat16
    is made here: operands are rounded, of the gradients' products too, and sums are
    float32.
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if precision == "bfloat16" and jax.default_backend() == "cpu":
        return _rounded(x, w)
    return x @ w


# The CPU backend has no batched product of bfloat16 matrices: members of an ensemble go
# one by one.
@jax.custom_batching.sequential_vmap
def _dot(x: Array, w: Array) -> Array:
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return jnp.matmul(x, w, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _rounded(x: Array, w: Array) -> Array:
    return _dot(x, w)


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _dot(x, w), (x, w)


def _backward(operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, w = operands
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, w.shape[-1])
    return _dot(gradient, w.T), _dot(rows.T, gradients)


_rounded.defvjp(_forward, _backward)
