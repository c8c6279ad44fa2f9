"""The one-dimensional U-Net over a horizon, of three systems.

| system | condition | settings |
|---|---|---|
| Diffusion Policy (Chi et al. 2023) | observations behind the step | `Film` |
| Diffuser (Janner et al. 2022) | the step alone | `Shift`, attention |
| Decision Diffuser (Ajay et al. 2023) | a return behind the step | `Shift`, `embed` |

Sizes, order of layers and initialisation are those of their authors' code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from jdql.networks.layers import Dense
from jdql.networks.mlp import MLP
from jdql.networks.temporal_layers import (
    ConvBlock,
    Level,
    Shift,
    TemporalBlock,
    doubling,
    halving,
    step_embedding,
    with_condition,
)
from jdql.types import Array, Float, Real

FINAL_GROUPS = 8  # of the last norm: the authors' code gives it no other number


def check_horizon(horizon: int, levels: int) -> None:
    """Refuses a horizon that the U-Net cannot halve and double back.

    Args:
      horizon: H.
      levels: number of widths; the horizon is halved between two of them.

    Raises:
      ValueError: the horizon is no positive multiple of 2^(levels - 1).
    """
    factor = 2 ** (levels - 1)
    if horizon < 1 or horizon % factor:
        raise ValueError(
            f"a U-Net of {levels} levels halves its horizon {levels - 1} times, which "
            f"{horizon=} does not allow: take a multiple of {factor}, or other levels"
        )


def check_widths(widths: Sequence[int], groups: int) -> None:
    """Refuses widths that the group norms cannot share out.

    Args:
      widths: channels of each level.
      groups: of the norms; the last one has 8 on the first width.

    Raises:
      ValueError: a width is no multiple of its number of groups, or there is none.
    """
    wrong = [width for width in widths if width < 1 or width % groups]
    if not widths or wrong or widths[0] % FINAL_GROUPS:
        raise ValueError(
            f"the widths of a U-Net must be multiples of its {groups=} of channels, "
            f"and the first one of {FINAL_GROUPS}: received {tuple(widths)}"
        )


class TemporalUnet(nn.Module):
    """Denoises a sequence: `(x [*B, H, D], k, condition [*B, E]) -> [*B, H, D]`.

    The blocks see the embedding of the diffusion step with the condition behind it.
    Nothing depends on H, so that a trained network also serves other horizons.

    Attributes:
      widths: channels of each level; the horizon is halved between two levels.
      step_dim: dimension of the step's embedding.
      kernel: taps of the convolutions, odd.
      groups: of the norms in the blocks; the last norm always has 8.
      modulation: makes what the condition does to a block, `Shift` or `Film`.
      attention: makes the attention of every level and of the middle, such as
        `LinearAttention`, or None.
      embed: embeds the condition; None leaves it as it is.
    """

    widths: Sequence[int] = (256, 512, 1024)
    step_dim: int = 256
    kernel: int = 5
    groups: int = 8
    modulation: Callable[..., nn.Module] = Shift
    attention: Callable[..., nn.Module] | None = None
    embed: MLP | None = None

    def _block(self, features: int) -> Callable[..., nn.Module]:
        settings = (features, self.kernel, self.groups, self.modulation)
        return functools.partial(TemporalBlock, *settings)

    def _level(self, features: int, name: str) -> Level:
        return Level(self._block(features), self.attention, name=name)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*B H D"],
        k: Real[Array, "..."],
        condition: Float[Array, "*B E"] | None = None,
        keep: Float[Array, "*B"] | None = None,
        local: Float[Array, "*B H L"] | None = None,
    ) -> Float[Array, "*B H D"]:
        """The prediction for a noisy sequence.

        Args:
          x: noisy sequences; H is a multiple of 2^(levels - 1).
          k: diffusion steps in [0, K-1], a scalar or of the leading shape of `x`.
          condition: what the whole sequence answers to.  With `embed`, None stands for
            a dropped one, whose embedding is 0.
          keep: 1, or 0 where the condition is dropped: multiplies the embedding.
          local: what each step of the sequence answers to.

        Raises:
          ValueError: the levels cannot halve H.
        """
        check_horizon(x.shape[-2], len(self.widths))
        seen = step_embedding(k, self.step_dim, x.shape[:-2])
        seen = with_condition(seen, self.embed, condition, keep)
        if local is not None:
            # Deviation: the authors' second such block, for the way up, is left out;
            # an index that is never reached keeps its output from being used.
            local = self._block(self.widths[0])(name="local")(local, seen)
        h, skips = self._down(x, seen, local)
        h = self._up(self._middle(h, seen), seen, skips)
        h = ConvBlock(self.widths[0], self.kernel, FINAL_GROUPS, name="final")(h)
        return Dense(x.shape[-1], name="out")(h)

    def _down(
        self, x: Array, seen: Array, local: Array | None
    ) -> tuple[Array, list[Array]]:
        skips: list[Array] = []
        for i, width in enumerate(self.widths):
            x = halving(x.shape[-1], f"halve_{i - 1}")(x) if i else x
            x = self._level(width, f"down_{i}")(x, seen, None if i else local)
            skips.append(x)
        return x, skips

    def _middle(self, x: Array, seen: Array) -> Array:
        block = self._block(x.shape[-1])
        x = block(name="middle_0")(x, seen)
        if self.attention is not None:
            x = self.attention(name="middle_attention")(x)
        return block(name="middle_1")(x, seen)

    def _up(self, x: Array, seen: Array, skips: list[Array]) -> Array:
        # The first level has no skip: the authors' way up has one level fewer.
        for i in reversed(range(1, len(self.widths))):
            x = jnp.concatenate([x, skips[i]], axis=-1)
            x = self._level(self.widths[i - 1], f"up_{i}")(x, seen)
            x = doubling(x.shape[-1], f"double_{i}")(x)
        return x
