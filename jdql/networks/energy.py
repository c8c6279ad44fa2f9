"""The energy of a noisy action: a scalar of action, diffusion time and observation."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdql.networks.layers import Dense
from jdql.networks.mlp import MLP
from jdql.types import Array, Float


class EnergyNetwork(nn.Module):
    """An energy of noisy actions (Lu et al. 2023, "CEP").

    Input order [action, time features, observation].  The features are random ones of
    the time (Tancik et al. 2020), sines first, whose frequencies N(0, 30^2) are drawn
    once and not trained, through one dense layer.

    Attributes:
      hidden: widths of the hidden layers (the authors': four of 256).
      time_dim: dimension of the time features, even (the authors': 32).
    """

    hidden: Sequence[int] = (256,) * 4
    time_dim: int = 32

    @nn.compact
    def __call__(
        self,
        action: Float[Array, "*B A"],
        time: Float[Array, "..."],
        observation: Float[Array, "*B O"],
    ) -> Float[Array, "*B"]:
        """The energy; `time` in (0, 1], 1 the noisiest, a scalar or of leading axes."""
        normal = nn.initializers.normal(30.0)
        frequencies = self.param("frequencies", normal, (self.time_dim // 2,))
        angles = 2 * jnp.pi * time[..., None] * jax.lax.stop_gradient(frequencies)
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        features = Dense(self.time_dim, name="time")(features)
        features = jnp.broadcast_to(features, (*action.shape[:-1], self.time_dim))
        x = jnp.concatenate([action, features, observation], axis=-1)
        return MLP(self.hidden, 1, nn.silu, name="body")(x).squeeze(-1)
