"""The multi-layer perceptrons of Diffusion-QL: noise network and critic ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from jdql.networks.layers import Dense, mish, step_features
from jdql.types import Array, Float, Int


class MLP(nn.Module):
    """Dense layers with an activation after each but the last.

    Attributes:
      hidden: widths of the hidden layers.
      out: width of the output.
    """

    hidden: Sequence[int]
    out: int
    activation: Callable[[Array], Array] = mish

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B F"]:
        """Maps `[*B, I]` to `[*B, out]`."""
        for width in self.hidden:
            x = self.activation(Dense(width)(x))
        return Dense(self.out)(x)


class NoiseNetwork(nn.Module):
    """Predicts the noise in an action, given diffusion step and observation.

    Input order [noisy action, step features, observation]; the features pass through a
    two-layer perceptron of width 2 `step_dim` first.

    Attributes:
      action_dim: A.
      hidden: widths of the hidden layers (the authors': 256, 256, 256).
      step_dim: dimension of the step features (the authors': 16).
    """

    action_dim: int
    hidden: Sequence[int] = (256, 256, 256)
    step_dim: int = 16

    @nn.compact
    def __call__(
        self,
        x_k: Float[Array, "*B A"],
        k: Int[Array, "..."],
        observation: Float[Array, "*B O"],
    ) -> Float[Array, "*B A"]:
        """Predicted noise; `k` in 0..K-1, a scalar or of the leading shape of x_k."""
        features = step_features(k, self.step_dim)
        features = MLP((2 * self.step_dim,), self.step_dim, name="step")(features)
        features = jnp.broadcast_to(features, (*x_k.shape[:-1], self.step_dim))
        x = jnp.concatenate([x_k, features, observation], axis=-1)
        return MLP(self.hidden, self.action_dim, name="body")(x)


class Critic(nn.Module):
    """An ensemble of independent Q-functions.

    Attributes:
      hidden: widths of the hidden layers (the authors': 256, 256, 256).
      members: number of Q-functions, M (twin critics: 2).
    """

    hidden: Sequence[int] = (256, 256, 256)
    members: int = 2

    @nn.compact
    def __call__(
        self, observation: Float[Array, "*B O"], action: Float[Array, "*B A"]
    ) -> Float[Array, "M *B"]:  # noqa: F821
        """The value of every member for each pair, `[M, *B]`."""
        x = jnp.concatenate([observation, action], axis=-1)
        ensemble = nn.vmap(
            MLP,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=self.members,
        )
        return ensemble(self.hidden, 1, name="q")(x).squeeze(-1)
