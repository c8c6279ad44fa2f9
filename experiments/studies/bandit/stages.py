"""An agent made of stages: each improves one network, and one update runs them all.

A later stage sees what the earlier ones of the same update have made: the policy is
improved on the critic that was fitted a moment before.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jdql.agents.base import Agent, Draws, Learned, Metrics, acts
from jdql.data.sampling import transitions
from jdql.networks.mlp import Critic
from jdql.optim import Model, adam, descend, start
from jdql.rl.targets import critic_loss
from jdql.types import Array, Int, Params, PRNGKeyArray, Transition

ByName = dict[str, Any]

# `(own parameters, all parameters, batch, draws, metrics so far) -> (loss, metrics)`
Loss = Callable[[Params, ByName, Transition, Draws, Metrics], tuple[Array, Metrics]]


class TrainState(NamedTuple):
    """Arrays only: the models by the name of the network."""

    step: Int[Array, ""]
    models: dict[str, Model]


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
    lr: Any
    project: Callable[[Params], Params] = lambda params: params


def agent(
    batch_size: int,
    init_params: Callable[[PRNGKeyArray], ByName],
    stages: Sequence[Stage],
    draw: Callable[[PRNGKeyArray], Draws],
    sample: Callable[[Learned, Array, PRNGKeyArray], Array],
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
        models = {name: start(params[name], o) for name, o in optimizers.items()}
        return TrainState(jnp.zeros((), jnp.int32), models)

    def update_step(
        state: TrainState, batch: Transition, draws: Draws
    ) -> tuple[TrainState, Metrics]:
        models = dict(state.models)
        metrics: Metrics = {}
        for name, loss, _, project in stages:
            inputs = learned(models), batch, draws, metrics
            model, found = descend(name, optimizers[name], models[name], loss, *inputs)
            models[name] = model._replace(params=project(model.params))
            metrics = {**metrics, **found}
        return TrainState(state.step + 1, models), metrics

    def plan(learned: Learned, observation: Array, key: PRNGKeyArray) -> Array:
        return sample(learned, observation[None], key)

    return Agent(
        init=init,
        sample_batch=functools.partial(transitions, batch_size=batch_size),
        draw=draw,
        update_step=update_step,
        learned=lambda state: learned(state.models),
        acting=acts(plan),
    )


def learned(models: Mapping[str, Model]) -> ByName:
    """The parameters by the name of the network."""
    return {name: model.params for name, model in models.items()}


def tiny(config: Any) -> Any:
    """The settings of a method at the size of a toy."""
    hidden = {
        f.name: (16, 16) for f in dataclasses.fields(config) if "hidden" in f.name
    }
    return dataclasses.replace(config, batch_size=8, **hidden)


def critic_stage(hidden: Sequence[int], lr: Any) -> tuple[Critic, Stage]:
    """The twin critic, and the stage that regresses both heads on the reward.

    A bandit's value is its reward: there is nothing to bootstrap from.
    """
    critic = Critic(hidden)

    def loss(own, params, batch, draws, metrics):
        q: Any = critic.apply(own, batch.observation, batch.action)
        return critic_loss(q, batch.reward), {"q_mean": jnp.mean(q)}

    return critic, Stage("critic", loss, lr)
