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

from jdql.networks.convolution import Convolution, Spreading
from jdql.networks.layers import Dense, mish, step_features, uniform_fan_in
from jdql.networks.mlp import MLP
from jdql.types import Array, Float, Real


def uniform(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in), as a function that Flax's own layers take."""

    def draw(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        return uniform_fan_in(key, shape, fan_in, dtype)

    return draw


def halving(channels: int, name: str) -> Convolution:
    """Halves the horizon, with three taps; an odd one is rounded up."""
    return Convolution(channels, 3, 2, name=name)


def doubling(channels: int, name: str) -> Spreading:
    """Doubles the horizon, by a transposed convolution with four taps."""
    return Spreading(channels, name=name)


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


def embedded(
    embed: MLP | None,
    condition: Float[Array, "*B C"] | None,
    keep: Float[Array, "*B"] | None,
    leading: tuple[int, ...],
) -> Float[Array, "*B E"] | None:
    """The embedded condition, 0 where it is dropped; None where there is none.

    Args:
      embed: embeds the condition; None leaves it as it is.
      condition: None where there is none; with `embed`, a dropped one.
      keep: 1, or 0 where the condition is dropped.  It is the embedding that becomes 0,
        since a condition of 0 may be one like any other.
      leading: `*B`, of the sequences.
    """
    if embed is None:
        found = condition
    elif condition is None:
        found = jnp.zeros((*leading, embed.out))
    else:
        found = embed(condition)
    return found if found is None or keep is None else found * keep[..., None]


def with_condition(
    step: Float[Array, "*B E"],
    embed: MLP | None,
    condition: Float[Array, "*B C"] | None,
    keep: Float[Array, "*B"] | None = None,
) -> Float[Array, "*B F"]:
    """The embedding of the step, with that of the condition, if any, behind it."""
    found = embedded(embed, condition, keep, step.shape[:-1])
    return step if found is None else jnp.concatenate([step, found], axis=-1)


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
