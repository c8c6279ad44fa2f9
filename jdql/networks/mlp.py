"""Multi-layer perceptrons: noise and velocity networks, one-step actors, critics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdql.networks.layers import Dense, XavierDense, mish, step_features
from jdql.types import Array, Float, Int, Params, Real


class MLP(nn.Module):
    """Dense layers with an activation after each but the last.

    Attributes:
      hidden: widths of the hidden layers.
      out: width of the output.
      activation: after each layer but the last.
      dense: makes a layer of a width.
      norm: layer normalisation after each activation.
    """

    hidden: Sequence[int]
    out: int
    activation: Callable[[Array], Array] = mish
    dense: Callable[[int], nn.Module] = Dense
    norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B F"]:
        """Maps `[*B, I]` to `[*B, out]`."""
        for width in self.hidden:
            x = self.activation(self.dense(width)(x))
            x = nn.LayerNorm()(x) if self.norm else x
        return self.dense(self.out)(x)


def value_function(network: MLP) -> Callable[[Params, Array], Array]:
    """V(s) of a network with one output: `(params, observation [*B, O]) -> [*B]`."""
    return lambda params, observation: network.apply(params, observation).squeeze(-1)


def conditioned(
    network: nn.Module, params: Params, observation: Float[Array, "*B O"]
) -> Callable[[Array, Array], Array]:
    """The network `(x, k or time) -> prediction` for given observations."""

    def predict(x: Array, k: Array) -> Array:
        prediction: Any = network.apply(params, x, k, observation)
        return prediction

    return predict


class NoiseNetwork(nn.Module):
    """Predicts the noise in an action, given diffusion step and observation.

    Input order [noisy action, step features, observation]; the features pass through a
    two-layer perceptron of width 2 `step_dim` first.

    Attributes:
      action_dim: A.
      hidden: widths of the hidden layers (the authors': 256, 256, 256).
      step_dim: dimension of the step features (the authors': 16).
      features: of the diffusion step, `(k [*B], step_dim) -> [*B, step_dim]`.
    """

    action_dim: int
    hidden: Sequence[int] = (256, 256, 256)
    step_dim: int = 16
    features: Callable[[Array, int], Array] = step_features

    @nn.compact
    def __call__(
        self,
        x_k: Float[Array, "*B A"],
        k: Real[Array, "..."],
        observation: Float[Array, "*B O"],
    ) -> Float[Array, "*B A"]:
        """Predicted noise; `k` in [0, K-1], a scalar or of the leading shape of x_k."""
        features = self.features(k, self.step_dim)
        features = MLP((2 * self.step_dim,), self.step_dim, name="step")(features)
        features = jnp.broadcast_to(features, (*x_k.shape[:-1], self.step_dim))
        x = jnp.concatenate([x_k, features, observation], axis=-1)
        return MLP(self.hidden, self.action_dim, name="body")(x)


class Critic(nn.Module):
    """An ensemble of independent Q-functions.

    Attributes:
      hidden: widths of the hidden layers (the authors': 256, 256, 256).
      members: number of Q-functions, M (twin critics: 2).
      activation: see `MLP`, like the rest.
      dense: makes a layer of a width.
      norm: layer normalisation after each activation.
    """

    hidden: Sequence[int] = (256, 256, 256)
    members: int = 2
    activation: Callable[[Array], Array] = mish
    dense: Callable[[int], nn.Module] = Dense
    norm: bool = False

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
        settings = (self.activation, self.dense, self.norm)
        return ensemble(self.hidden, 1, *settings, name="q")(x).squeeze(-1)


def member_q(
    critic: Critic,
    params: Params,
    member: Int[Array, ""],
    observation: Float[Array, "*B O"],
    action: Float[Array, "*B A"],
) -> Float[Array, "*B"]:
    """The value of one member of an ensemble, at the cost of one."""
    own = jax.tree.map(lambda leaf: leaf[member][None], params)
    alone: Any = critic.clone(members=1).apply(own, observation, action)
    return alone[0]


def gelu_critic(hidden: Sequence[int] = (512,) * 4, members: int = 2) -> Critic:
    """The critics of flow Q-learning: GELU and layer normalisation.

    Park, Li & Levine 2025, appendix; sizes of the authors' code.
    """
    return Critic(hidden, members, nn.gelu, XavierDense, norm=True)


class VelocityNetwork(nn.Module):
    """The velocity of a flow, given its time and the observation.

    Input order [observation, x_t, t], the time as it is (Park, Li & Levine 2025).

    Attributes:
      action_dim: A.
      hidden: widths of the hidden layers (the authors': four of 512).
    """

    action_dim: int
    hidden: Sequence[int] = (512,) * 4

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "*B A"],
        time: Float[Array, "..."],
        observation: Float[Array, "*B O"],
    ) -> Float[Array, "*B A"]:
        """The velocity; `time` in [0, 1], a scalar or of the leading shape of x_t."""
        time = jnp.broadcast_to(time[..., None], (*x_t.shape[:-1], 1))
        x = jnp.concatenate([observation, x_t, time], axis=-1)
        return MLP(self.hidden, self.action_dim, nn.gelu, XavierDense, name="body")(x)


class OneStepActor(nn.Module):
    """An action from noise in one call: the student of a flow (Park et al. 2025).

    Input order [observation, noise].

    Attributes:
      action_dim: A.
      hidden: widths of the hidden layers (the authors': four of 512).
    """

    action_dim: int
    hidden: Sequence[int] = (512,) * 4

    @nn.compact
    def __call__(
        self, noise: Float[Array, "*B A"], observation: Float[Array, "*B O"]
    ) -> Float[Array, "*B A"]:
        """The action, not clipped."""
        x = jnp.concatenate([observation, noise], axis=-1)
        return MLP(self.hidden, self.action_dim, nn.gelu, XavierDense, name="body")(x)
