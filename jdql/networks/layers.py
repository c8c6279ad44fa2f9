"""PyTorch-style dense layers, Mish, and features of the diffusion step."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdql.types import Array, Float, Real


def _mish_terms(x: Array) -> tuple[Array, Array, Array]:
    # tanh(softplus(x)) = n / (n + 2) with n = e^x (e^x + 2): one exponential.  Above 20
    # the ratio is 1 in float32, and e^40 does not overflow.
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2.0)
    return e, n, 1.0 / (n + 2.0)


@jax.custom_jvp
def mish(x: Array) -> Array:
    """x tanh(softplus(x)) (Misra 2019).

    With one exponential and its gradient written out; automatic differentiation of the
    definition costs a quarter of the whole training update on a CPU.
    """
    _, n, reciprocal = _mish_terms(x)
    return x * n * reciprocal


@mish.defjvp
def _mish_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    e, n, reciprocal = _mish_terms(x)
    ratio = n * reciprocal
    slope = ratio + x * (4.0 * e * (e + 1.0) * reciprocal * reciprocal)
    return x * ratio, slope * tangent


def uniform_fan_in(
    key, shape: tuple[int, ...], fan_in: int, dtype=jnp.float32
) -> Array:
    """Uniform in +-1/sqrt(fan_in): the default of PyTorch's Linear layers."""
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Module):
    """x W + b; W and b uniform in +-1/sqrt(fan_in), as PyTorch has it, by default.

    Attributes:
      features: F.
      kernel_init: of W; None is PyTorch's law.
      bias_init: of b; None is PyTorch's law.
    """

    features: int
    kernel_init: nn.initializers.Initializer | None = None
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B F"]:
        """Maps `[*B, I]` to `[*B, features]`."""
        fan_in = x.shape[-1]
        torch = functools.partial(uniform_fan_in, fan_in=fan_in)
        shape = (fan_in, self.features)
        kernel = self.param("kernel", self.kernel_init or torch, shape)
        bias = self.param("bias", self.bias_init or torch, (self.features,))
        return x @ kernel + bias


XavierDense = functools.partial(
    Dense, kernel_init=nn.initializers.xavier_uniform(), bias_init=nn.initializers.zeros
)
LecunDense = functools.partial(  # Flax's own
    Dense, kernel_init=nn.initializers.lecun_normal(), bias_init=nn.initializers.zeros
)


def step_features(k: Real[Array, "*B"], dim: int) -> Float[Array, "*B D"]:
    """Sinusoids of the diffusion step, sines first.

    Frequencies 10000^(-i / (dim/2 - 1)), i = 0..dim/2 - 1, of the raw integer k, as in
    the authors' code of Diffusion-QL.

    Args:
      k: diffusion steps in [0, K-1]; samplers also stop between integers.
      dim: even and at least 4.

    Returns:
      `[*B, dim]` float32.
    """
    half = dim // 2
    frequencies = jnp.exp(jnp.arange(half) * -(jnp.log(10000.0) / (half - 1)))
    angles = k[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
