"""Convolutions along a horizon as one matrix product each.

The taps' inputs are laid side by side, [x_{h-1}, x_h, x_{h+1}] for three taps, and
multiplied by the kernel as a matrix.  XLA's own convolutions compute the same, but
inside a loop (every update and every step of a chain is one) its CPU backend runs them
40 to 120 times slower than this, forward and backward: 0.8 to 1.1 billion operations a
second on a core against 39 to 111.  Kernels have the shapes of Flax's layers.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp

from jdql.networks.layers import uniform_fan_in
from jdql.types import Array, Float


def padded(x: Float[Array, "*B H I"], before: int, after: int) -> Array:
    """The sequence with zeros before its first step and behind its last."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(before, after), (0, 0)])


def convolve(
    x: Float[Array, "*B H I"], kernel: Float[Array, "k I F"], stride: int = 1
) -> Float[Array, "*B G F"]:
    """y_g = sum_j x_{g stride + j - k // 2} kernel_j, x being 0 beyond its ends.

    Args:
      x: sequences.
      kernel: of k taps, an odd number.
      stride: from one step of the result to the next.

    Returns:
      `[*B, G, F]`, G = ceil(H / stride).
    """
    taps, reach = kernel.shape[0], kernel.shape[0] // 2
    last = x.shape[-2] - 1
    x = padded(x, reach, reach)
    beside = [x[..., j : j + last + 1 : stride, :] for j in range(taps)]
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return jnp.concatenate(beside, axis=-1) @ matrix


def spread(
    x: Float[Array, "*B H I"], kernel: Float[Array, "4 I F"]
) -> Float[Array, "*B G F"]:
    """The transposed convolution of stride 2 with four taps: G = 2 H.

    y_{2h} = x_{h-1} kernel_0 + x_h kernel_2 and
    y_{2h+1} = x_h kernel_1 + x_{h+1} kernel_3, x being 0 beyond its ends.
    """
    wide = padded(x, 1, 1)
    pairs = jnp.concatenate([wide[..., :-1, :], wide[..., 1:, :]], axis=-1)
    even = pairs[..., :-1, :] @ jnp.concatenate([kernel[0], kernel[2]])
    odd = pairs[..., 1:, :] @ jnp.concatenate([kernel[1], kernel[3]])
    both = jnp.stack([even, odd], axis=-2)
    return both.reshape(*x.shape[:-2], 2 * x.shape[-2], -1)


class Convolution(nn.Module):
    """`convolve` and a bias; both uniform in +-1/sqrt(k I), as PyTorch has it.

    Attributes:
      features: F.
      taps: k, odd.
      stride: of the result.
    """

    features: int
    taps: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "*B H I"]) -> Float[Array, "*B G F"]:
        """Maps `[*B, H, I]` to `[*B, ceil(H / stride), features]`."""
        kernel, bias = _parameters(self, self.taps, x.shape[-1])
        return convolve(x, kernel, self.stride) + bias


class Spreading(nn.Module):
    """`spread` and a bias; both uniform in +-1/sqrt(4 F), as PyTorch has it.

    Attributes:
      features: F, here as many as the channels of the input.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*B H I"]) -> Float[Array, "*B G F"]:
        """Maps `[*B, H, I]` to `[*B, 2 H, features]`."""
        kernel, bias = _parameters(self, 4, x.shape[-1])
        return spread(x, kernel) + bias


def _parameters(layer: Convolution | Spreading, taps: int, inputs: int):
    """The kernel `[k, I, F]` and the bias `[F]` of a layer."""
    law = functools.partial(uniform_fan_in, fan_in=taps * inputs)
    kernel = layer.param("kernel", law, (taps, inputs, layer.features))
    return kernel, layer.param("bias", law, (layer.features,))
