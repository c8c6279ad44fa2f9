"""Layers along a horizon: convolutions, their conditioning, linear attention.

Sequences are `[*B, H, F]` with any leading axes, also none.  Initialisation is
PyTorch's default, as in the authors' code of the networks that are built of these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdql.networks.layers import Dense, mish, step_features, uniform_fan_in
from jdql.networks.mlp import MLP
from jdql.types import Array, Float, Real


def uniform(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in), as a function that Flax's own layers take."""

    def draw(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        return uniform_fan_in(key, shape, fan_in, dtype)

    return draw


class Convolution(nn.Module):
    """A convolution padded by half of its kernel: H steps become H / stride.

    It is one product of matrices, of the taps' inputs side by side: XLA's CPU compiler
    has no fast way back through a convolution inside a loop (20 times slower).

    Attributes:
      features: F.
      kernel: taps, an odd number.
      stride: of the output; an odd horizon is rounded up.
    """

    features: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "*B H I"]) -> Float[Array, "*B L F"]:
        """Maps `[*B, H, I]` to `[*B, H / stride, features]`."""
        taps, inputs = self.kernel, x.shape[-1]
        law = uniform(taps * inputs)
        kernel = self.param("kernel", law, (taps, inputs, self.features))
        bias = self.param("bias", law, (self.features,))
        padded = beside(x, taps // 2, taps // 2)
        last = (x.shape[-2] - 1) // self.stride * self.stride + 1
        seen = [padded[..., j : j + last : self.stride, :] for j in range(taps)]
        return jnp.concatenate(seen, -1) @ kernel.reshape(-1, self.features) + bias


class Doubling(nn.Module):
    """A transposed convolution with four taps, as products: H steps become 2 H.

    out[2l] = x[l] W_2 + x[l-1] W_0 and out[2l+1] = x[l] W_1 + x[l+1] W_3.

    Attributes:
      features: F.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*B H I"]) -> Float[Array, "*B L F"]:
        """Maps `[*B, H, I]` to `[*B, 2 H, features]`."""
        law = uniform(4 * x.shape[-1])
        kernel = self.param("kernel", law, (4, x.shape[-1], self.features))
        bias = self.param("bias", law, (self.features,))
        before, after = beside(x, 1, 0)[..., :-1, :], beside(x, 0, 1)[..., 1:, :]
        even = x @ kernel[2] + before @ kernel[0]
        odd = x @ kernel[1] + after @ kernel[3]
        both = jnp.stack([even, odd], axis=-2)
        return both.reshape(*x.shape[:-2], -1, self.features) + bias


def beside(x: Float[Array, "*B H F"], before: int, after: int) -> Array:
    """The sequence with so many steps of zeros on either side."""
    return jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (before, after), (0, 0)])


def halving(channels: int, name: str) -> Convolution:
    """Halves the horizon, with three taps; an odd one is rounded up."""
    return Convolution(channels, 3, 2, name=name)


def doubling(channels: int, name: str) -> Doubling:
    """Doubles the horizon, by a transposed convolution with four taps."""
    return Doubling(channels, name=name)


def step_embedding(
    k: Real[Array, "..."], dim: int, leading: tuple[int, ...]
) -> Float[Array, "*B E"]:
    """Sinusoids of the diffusion step through a layer four times as wide.

    Makes the module `step` in the module that calls it.

    Args:
      k: diffusion steps in [0, K-1], a scalar or of the leading shape.
      dim: of the sinusoids and of the result, even and at least 4.
      leading: `*B`, of the sequences.
    """
    embedded = MLP((4 * dim,), dim, name="step")(step_features(jnp.asarray(k), dim))
    return jnp.broadcast_to(embedded, (*leading, dim))


def with_condition(
    step: Float[Array, "*B E"],
    embed: MLP | None,
    condition: Float[Array, "*B C"] | None,
    keep: Float[Array, "*B"] | None = None,
) -> Float[Array, "*B F"]:
    """The embedding of the step, with that of the condition behind it.

    Args:
      step: embedding of the diffusion step.
      embed: embeds the condition; None leaves it as it is.
      condition: None where there is none; with `embed`, a dropped one.
      keep: 1, or 0 where the condition is dropped.  It is the embedding that becomes 0,
        since a condition of 0 may be one like any other.
    """
    if embed is not None:
        nothing = jnp.zeros((*step.shape[:-1], embed.out))
        found = nothing if condition is None else embed(condition)
    elif condition is not None:
        found = condition
    else:
        return step
    found = found if keep is None else found * keep[..., None]
    return jnp.concatenate([step, found], axis=-1)


class ConvBlock(nn.Module):
    """mish(group norm(convolution)).

    The norm's statistics are over the channels of a group and the whole horizon.

    Attributes:
      features: F, a multiple of `groups`.
      kernel: taps, odd.
      groups: of the norm.
    """

    features: int
    kernel: int = 5
    groups: int = 8

    @nn.compact
    def __call__(self, x: Float[Array, "*B H I"]) -> Float[Array, "*B H F"]:
        """Maps `[*B, H, I]` to `[*B, H, features]`."""
        x = Convolution(self.features, self.kernel, name="conv")(x)
        norm = nn.GroupNorm(
            self.groups,
            epsilon=1e-5,
            reduction_axes=(-2, -1),
            use_fast_variance=False,
            name="norm",
        )
        return mish(norm(x))


class Shift(nn.Module):
    """x + W mish(c) + b: the condition moves each channel, at all steps alike."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "*B H F"], condition: Float[Array, "*B E"]
    ) -> Float[Array, "*B H F"]:
        """Keeps the shape of `x`."""
        return x + Dense(x.shape[-1], name="dense")(mish(condition))[..., None, :]


class Film(nn.Module):
    """scale(c) x + bias(c) (Perez et al. 2018), both linear in mish(c).

    The scale is not 1 + scale(c), as in the authors' code of Diffusion Policy.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "*B H F"], condition: Float[Array, "*B E"]
    ) -> Float[Array, "*B H F"]:
        """Keeps the shape of `x`."""
        both = Dense(2 * x.shape[-1], name="dense")(mish(condition))
        scale, bias = jnp.split(both[..., None, :], 2, axis=-1)
        return scale * x + bias


class TemporalBlock(nn.Module):
    """Two convolution blocks, the condition between them, and a way around them.

    Attributes:
      features: F.
      kernel: taps of the convolutions.
      groups: of the norms.
      modulation: makes what the condition does to the channels, `Shift` or `Film`.
    """

    features: int
    kernel: int = 5
    groups: int = 8
    modulation: Callable[..., nn.Module] = Shift

    @nn.compact
    def __call__(
        self, x: Float[Array, "*B H I"], condition: Float[Array, "*B E"]
    ) -> Float[Array, "*B H F"]:
        """Maps `[*B, H, I]` to `[*B, H, features]`."""
        block = functools.partial(ConvBlock, self.features, self.kernel, self.groups)
        inner = block(name="block_0")(x)
        inner = self.modulation(name="modulation")(inner, condition)
        inner = block(name="block_1")(inner)
        changes = x.shape[-1] != self.features
        return inner + (Dense(self.features, name="skip")(x) if changes else x)


class Level(nn.Module):
    """Two blocks of one width and, where there is one, attention.

    Attributes:
      block: makes one of the blocks by its name.
      attention: makes the attention by its name, or None.
    """

    block: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*B H I"],
        condition: Float[Array, "*B E"],
        local: Float[Array, "*B H F"] | None = None,
    ) -> Float[Array, "*B H F"]:
        """Maps `[*B, H, I]` to `[*B, H, F]`; `local` is added between the blocks."""
        x = self.block(name="first")(x, condition)
        x = x if local is None else x + local
        x = self.block(name="second")(x, condition)
        return x if self.attention is None else self.attention(name="attention")(x)


class LinearAttention(nn.Module):
    """x + attention without a softmax over pairs, whose cost is linear in the horizon.

    out_n = sum_m (q_n . softmax_m(k_m)) v_m / sqrt(F'): the softmax of each channel of
    the keys runs over the horizon (Shen et al. 2021), after a layer norm; Diffuser has
    it on HalfCheetah, whose horizon is 4.

    Attributes:
      heads: number of them.
      head_dim: F', channels of a head.
    """

    heads: int = 4
    head_dim: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "*B H F"]) -> Float[Array, "*B H F"]:
        """Keeps the shape of `x`."""
        width, F = self.heads * self.head_dim, x.shape[-1]
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")
        triple = nn.Dense(
            3 * width, use_bias=False, kernel_init=uniform(F), name="qkv"
        )(norm(x))
        triple = triple.reshape(*x.shape[:-1], 3, self.heads, self.head_dim)
        q, k, v = (triple[..., i, :, :] for i in range(3))
        k = jax.nn.softmax(k, axis=-3)
        context = jnp.einsum("...nhd,...nhe->...hde", k, v)
        out = jnp.einsum("...hde,...nhd->...nhe", context, q) * self.head_dim**-0.5
        return x + Dense(F, name="out")(out.reshape(*x.shape[:-1], width))
