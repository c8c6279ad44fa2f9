"""The way down of the temporal U-Net with a number at its end: Diffuser's value."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jdql.networks.mlp import MLP
from jdql.networks.temporal_layers import (
    Level,
    TemporalBlock,
    halving,
    step_embedding,
    with_condition,
)
from jdql.types import Array, Float, Real


def check_value_widths(widths: Sequence[int], groups: int) -> None:
    """Refuses widths that the group norms of a value network cannot share out.

    Args:
      widths: channels of each level; two more blocks have half and a quarter of the
        last one's.
      groups: of the norms.

    Raises:
      ValueError: a width is no multiple of `groups`, or the last one none of four times
        as many, or below 8, or there is none.
    """
    wrong = [width for width in widths if width < 1 or width % groups]
    if not widths or wrong or widths[-1] % (4 * groups) or widths[-1] < 8:
        raise ValueError(
            f"the widths of a value network must be multiples of its {groups=} of "
            f"channels, and the last one of {max(8, 4 * groups)}: received "
            f"{tuple(widths)}"
        )


class TemporalValue(nn.Module):
    """The value of a noisy sequence: `(x [*B, H, D], k) -> [*B]` (Janner et al. 2022).

    Every level halves the horizon, an odd one rounded up, and so do two blocks after
    them with half and a quarter of the channels; a layer reads all that is left,
    and the embedding of the diffusion step once more.

    Attributes:
      widths: channels of each level.
      step_dim: dimension of the step's embedding.
      kernel: taps of the convolutions, odd.
      groups: of the norms.
    """

    widths: Sequence[int] = (32, 64, 128, 256)
    step_dim: int = 32
    kernel: int = 5
    groups: int = 8

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*B H D"],
        k: Real[Array, "..."],
        condition: Float[Array, "*B E"] | None = None,
    ) -> Float[Array, "*B"]:
        """The value.

        Args:
          x: noisy sequences, of the horizon that the network was initialised with.
          k: diffusion steps in [0, K-1], a scalar or of the leading shape of `x`.
          condition: what the whole sequence answers to.
        """
        leading = x.shape[:-2]
        seen = step_embedding(k, self.step_dim, leading)
        seen = with_condition(seen, None, condition)
        settings = {"kernel": self.kernel, "groups": self.groups}
        for i, width in enumerate(self.widths):
            block = functools.partial(TemporalBlock, width, **settings)
            x = Level(block, name=f"down_{i}")(x, seen)
            x = halving(width, f"halve_{i}")(x)
        for i, width in enumerate((self.widths[-1] // 2, self.widths[-1] // 4)):
            x = TemporalBlock(width, **settings, name=f"middle_{i}")(x, seen)
            x = halving(width, f"middle_halve_{i}")(x)
        x = x.reshape(*leading, -1)
        # Deviation: the authors count one halving too few for this layer, so that
        # theirs only runs where a single step is left.  There it is this one.
        head = MLP((x.shape[-1] // 2,), 1, name="head")
        return head(jnp.concatenate([x, seen], axis=-1)).squeeze(-1)
