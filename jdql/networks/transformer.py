"""Diffusion Policy's transformer over chunks (Chi et al. 2023, section IV-B, fig. 4).

The actions of a chunk are the tokens; they attend to themselves and to a memory of the
diffusion step and the observations.  Sizes, order of layers and initialisation are
those of the authors' code for tasks without images.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdql.networks.layers import Dense, step_features
from jdql.networks.mlp import MLP
from jdql.types import Array, Bool, Float, Params, Real

normal = nn.initializers.normal(0.02)
NormalDense = functools.partial(
    Dense, kernel_init=normal, bias_init=nn.initializers.zeros
)
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


def check_heads(width: int, heads: int) -> None:
    """Refuses a width that the heads of attention cannot share out.

    Args:
      width: of the tokens.
      heads: number of them.

    Raises:
      ValueError: the width is no positive even multiple of the heads, or below 4.
    """
    if heads < 1 or width < 4 or width % heads or width % 2:
        raise ValueError(
            f"the tokens' {width=} must be even, at least 4 and a multiple of the "
            f"number of heads of attention, {heads=}"
        )


def causal_masks(
    horizon: int, memory: int
) -> tuple[Bool[Array, "H H"], Bool[Array, "H M"]]:
    """What an action sees of the actions, and of the memory; True is visible.

    Action t sees actions s <= t, and tokens s <= t + 1 of the memory, of which the
    first is the diffusion step: observations 0 to t.  Both count from the first
    observation, so that the first action does not see the second observation, and all
    that are carried out see every one.

    Args:
      horizon: H, number of actions.
      memory: M, number of observations and one.
    """
    t = jnp.arange(horizon)[:, None]
    return t >= jnp.arange(horizon), t >= jnp.arange(memory) - 1


def decays(params: Params) -> Params:
    """Which parameters decay, for `optax.adamw(..., mask=decays)`.

    The kernels of dense layers and of attention; no bias, scale of a norm, or learned
    position (the authors' optimiser).

    Returns:
      The tree of `params` with a truth value at each leaf.
    """

    def decaying(path: Any, _: Array) -> bool:
        return path[-1].key == "kernel"

    return jax.tree_util.tree_map_with_path(decaying, params)


class DecoderLayer(nn.Module):
    """Attention to the tokens, to the memory, and two dense layers; norms come first.

    Attributes:
      heads: of attention.
      dropout: rate, in [0, 1), of the attention weights and behind each layer.
    """

    heads: int = 4
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*B H F"],
        memory: Float[Array, "*B M F"],
        masks: tuple[Array | None, Array | None],
        deterministic: bool = True,
    ) -> Float[Array, "*B H F"]:
        """Keeps the shape of `x`; `masks` as `causal_masks`, None where all is seen."""
        F = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        attention = functools.partial(
            nn.MultiHeadDotProductAttention,
            self.heads,
            dropout_rate=self.dropout,
            broadcast_dropout=False,
            deterministic=deterministic,
            kernel_init=normal,
        )
        y = LayerNorm(name="norm_0")(x)
        x = x + drop(attention(name="attention")(y, mask=masks[0]))
        y = LayerNorm(name="norm_1")(x)
        x = x + drop(attention(name="memory_attention")(y, memory, mask=masks[1]))
        y = LayerNorm(name="norm_2")(x)
        y = nn.gelu(NormalDense(4 * F, name="widen")(y), approximate=False)
        return x + drop(NormalDense(F, name="narrow")(drop(y)))


class ChunkTransformer(nn.Module):
    """Denoises a chunk: `(x [*B, H, D], k, condition [*B, C, O]) -> [*B, H, D]`.

    Positions are learned: H and C are those that it was initialised with.

    Attributes:
      layers: number of decoder layers (the authors', on PushT: 8).
      heads: of attention (4).
      width: F, of the tokens (256).
      causal: whether `causal_masks` hold; otherwise each action sees everything.
      dropout: rate, in [0, 1), inside the decoder (0.01; 0.3 on other tasks).
      token_dropout: rate, in [0, 1), of the embedded tokens (0).
    """

    layers: int = 8
    heads: int = 4
    width: int = 256
    causal: bool = True
    dropout: float = 0.0
    token_dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*B H D"],
        k: Real[Array, "..."],
        condition: Float[Array, "*B C O"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "*B H D"]:
        """The prediction for a noisy chunk.

        Args:
          x: noisy chunks.
          k: diffusion steps in [0, K-1], a scalar or of the leading shape of `x`.
          condition: the observations that the chunk answers to, the last one being the
            current; None where there are none.
          deterministic: False drops out, which takes `rngs={"dropout": key}`.

        Raises:
          ValueError: the heads cannot share out the width.
        """
        check_heads(self.width, self.heads)
        drop = nn.Dropout(self.token_dropout, deterministic=deterministic)
        tokens = NormalDense(self.width, name="enter")(x)
        tokens = drop(tokens + self._positions("positions", tokens))
        memory = self._step_and_observations(k, condition, x.shape[:-2])
        memory = drop(memory + self._positions("memory_positions", memory))
        encoder = MLP((4 * self.width,), self.width, dense=NormalDense, name="memory")
        memory = encoder(memory)
        masks: tuple[Array | None, Array | None] = (None, None)
        if self.causal:
            masks = causal_masks(x.shape[-2], memory.shape[-2])
        for i in range(self.layers):
            layer = DecoderLayer(self.heads, self.dropout, name=f"layer_{i}")
            tokens = layer(tokens, memory, masks, deterministic)
        return NormalDense(x.shape[-1], name="leave")(LayerNorm(name="norm")(tokens))

    def _positions(self, name: str, tokens: Array) -> Array:
        positions: Array = self.param(name, normal, tokens.shape[-2:])
        return positions

    def _step_and_observations(
        self, k: Array, condition: Array | None, leading: tuple[int, ...]
    ) -> Array:
        step = step_features(jnp.asarray(k), self.width)[..., None, :]
        step = jnp.broadcast_to(step, (*leading, 1, self.width))
        if condition is None:
            return step
        seen = NormalDense(self.width, name="observe")(condition)
        return jnp.concatenate([step, seen], axis=-2)
