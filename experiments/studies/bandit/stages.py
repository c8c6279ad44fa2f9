"""An agent made of stages: each improves one network, and one update runs them all.

A later stage sees what the earlier ones of the same update have made: the policy is
improved on the critic that was fitted a moment before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents.base import Agent, Draws, Metrics, Policy, no_carry
from jdql.data.dataset import Dataset
from jdql.data.sampling import transitions
from jdql.networks.mlp import Critic
from jdql.optim import adam, gradient_step
from jdql.rl.targets import critic_loss
from jdql.types import Array, DataSpec, Int, Params, PRNGKeyArray, Transition

ByName = dict[str, Any]

# `(own parameters, all parameters, batch, draws, metrics so far) -> (loss, metrics)`
Loss = Callable[[Params, ByName, Transition, Draws, Metrics], tuple[Array, Metrics]]


class TrainState(NamedTuple):
    """Arrays only: parameters and optimiser states by the name of the network."""

    step: Int[Array, ""]
    params: ByName
    opts: ByName


class Stage(NamedTuple):
    """One gradient step of an update.

    Attributes:
      name: of the network whose parameters move.
      loss: its objective; the gradient is that of its first argument alone.
      lr: of its Adam.
      project: maps new parameters to allowed ones.
    """

    name: str
    loss: Loss
    lr: float
    project: Callable[[Params], Params] = lambda params: params


def agent(
    batch_size: int,
    init_params: Callable[[PRNGKeyArray], ByName],
    stages: Sequence[Stage],
    draw: Callable[[PRNGKeyArray], Draws],
    sample: Callable[[Policy, Array, PRNGKeyArray], Array],
) -> Agent:
    """Puts an agent together.

    Args:
      batch_size: transitions in an update, B.
      init_params: `(key) -> parameters by name`, one entry for each stage.
      stages: run in this order.
      draw: `(key) -> draws`, the noise of one update.
      sample: `(parameters, observation [1, O], key) -> action [1, A]`.
    """
    optimizers = {stage.name: adam(stage.lr) for stage in stages}

    def init(key: PRNGKeyArray) -> TrainState:
        params = init_params(key)
        opts = {name: o.init(params[name]) for name, o in optimizers.items()}
        return TrainState(jnp.zeros((), jnp.int32), params, opts)

    def sample_batch(key: PRNGKeyArray, dataset: Dataset) -> Transition:
        return transitions(key, dataset, batch_size)

    def update_step(
        state: TrainState, batch: Transition, draws: Draws
    ) -> tuple[TrainState, Metrics]:
        params, opts = dict(state.params), dict(state.opts)
        metrics: Metrics = {}
        for name, loss, _, project in stages:
            gradients, found = jax.grad(loss, has_aux=True)(
                params[name], params, batch, draws, metrics
            )
            new, opts[name] = gradient_step(
                optimizers[name], params[name], opts[name], gradients
            )
            params[name] = project(new)
            metrics = metrics | found
            metrics[f"{name}_grad_norm"] = optax.tree.norm(gradients)
        return TrainState(state.step + 1, params, opts), metrics

    def policy(state: TrainState) -> ByName:
        return state.params

    def act(policy, carry, observation, key):
        return sample(policy, observation[None], key)[0], carry

    return Agent(init, sample_batch, draw, update_step, policy, no_carry, act)


def critic_stage(hidden: Sequence[int], lr: float) -> tuple[Critic, Stage]:
    """The twin critic, and the stage that regresses both heads on the reward.

    A bandit's value is its reward: there is nothing to bootstrap from.
    """
    critic = Critic(hidden)

    def loss(own, params, batch, draws, metrics):
        q: Any = critic.apply(own, batch.observation, batch.action)
        value = critic_loss(q, batch.reward)
        return value, {"critic_loss": value, "q_mean": jnp.mean(q)}

    return critic, Stage("critic", loss, lr)


def blank(spec: DataSpec) -> tuple[Array, Array]:
    """An observation [1, O] and an action [1, A] to initialise networks with."""
    return jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, spec.action_dim))
