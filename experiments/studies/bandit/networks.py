"""The networks of the bandit's baselines: Gaussian, variational autoencoder, shift."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdql.networks.layers import Dense
from jdql.types import Array, Float


class Body(nn.Module):
    """Dense layers, each with a rectifier behind it."""

    hidden: Sequence[int]

    @nn.compact
    def __call__(self, *inputs: Float[Array, "*B I"]) -> Float[Array, "*B F"]:
        """Maps the inputs, side by side, to `[*B, hidden[-1]]`."""
        x = jnp.concatenate(inputs, axis=-1)
        for width in self.hidden:
            x = jax.nn.relu(Dense(width)(x))
        return x


class Gaussian(nn.Module):
    """Mean and log standard deviation of an action, both `[*B, out]`."""

    out: int
    hidden: Sequence[int] = (128, 128)

    @nn.compact
    def __call__(self, *inputs: Float[Array, "*B I"]) -> tuple[Array, Array]:
        """Two linear heads on one body; nothing is clamped here."""
        x = Body(self.hidden)(*inputs)
        return Dense(self.out, name="mean")(x), Dense(self.out, name="log_std")(x)


class VAE(nn.Module):
    """A conditional variational autoencoder of actions.

    Attributes:
      action_dim: A.
      hidden: widths of the encoder's and of the decoder's layers.
    """

    action_dim: int
    hidden: Sequence[int] = (128, 128)

    @property
    def latent_dim(self) -> int:
        """L, twice the action's dimension, as the authors have it."""
        return 2 * self.action_dim

    def setup(self) -> None:
        """The encoder's Gaussian, and the decoder."""
        self.encoder = Gaussian(self.latent_dim, self.hidden)
        self.decoder = Body(self.hidden)
        self.head = Dense(self.action_dim)

    def __call__(
        self, observation: Array, action: Array, noise: Array
    ) -> tuple[Array, Array, Array]:
        """Encodes, draws a latent and decodes it.

        Args:
          observation: `[*B, O]`.
          action: `[*B, A]` in [-1, 1].
          noise: `[*B, L]` standard normal.

        Returns:
          The action's reconstruction `[*B, A]` and the latent's mean and log standard
          deviation `[*B, L]`, the latter clamped to [-4, 15].
        """
        mean, log_std = self.encoder(observation, action)
        log_std = jnp.clip(log_std, -4.0, 15.0)
        latent = mean + jnp.exp(log_std) * noise
        return jnp.tanh(self.decode(observation, latent)), mean, log_std

    def decode(self, observation: Array, latent: Array) -> Array:
        """The action before the hyperbolic tangent, `[*B, A]`."""
        return self.head(self.decoder(observation, latent))


class Shift(nn.Module):
    """Moves an action by at most `reach` in each dimension, within [-1, 1]."""

    reach: float = 0.05
    hidden: Sequence[int] = (128, 128)

    @nn.compact
    def __call__(
        self, observation: Float[Array, "*B O"], action: Float[Array, "*B A"]
    ) -> Float[Array, "*B A"]:
        """The moved action."""
        move = Dense(action.shape[-1])(Body(self.hidden)(observation, action))
        return jnp.clip(action + self.reach * jnp.tanh(move), -1.0, 1.0)
