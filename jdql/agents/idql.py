"""IDQL, implicit Q-learning as an actor-critic method (arXiv:2304.10573).

Hansen-Estruch, Kostrikov, Janner, Kuba & Levine 2023.  The policy clones the behaviour
and never sees a value; the critics never see the policy.  They meet when acting.

| paper | here |
|---|---|
| IQL's losses of V and Q | `expectile.implicit_q` |
| the behaviour policy's denoising loss | `actor_loss` |
| the implicit policy, importance weights of its samples | `selection.implicit` |
| the greedy policy of the experiments | `selection.greedy` |
| LN-ResNet | `resnet.ResidualNoiseNetwork` |

The defaults are those of the authors' code: noise of variance beta_k, each x_k (not
x0_hat) clipped, the loss summed over action dimensions, and a slow average of the actor
that acts.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jdql.agents import actors
from jdql.agents.actors import Actor, ImplicitPolicy
from jdql.agents.base import NOTHING, Agent, Metrics, Stages, action_bounds, blank
from jdql.data.sampling import transitions
from jdql.diffusion import constraints, losses, samplers, schedules
from jdql.networks.layers import XavierDense
from jdql.networks.mlp import MLP, Critic, value_function
from jdql.networks.resnet import ResidualNoiseNetwork, draw_dropout
from jdql.optim import Averaging, Model, adam, adamw, descend, follow, start
from jdql.rl import expectile, selection
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors' for locomotion."""

    lr: float = 3e-4  # actor, at first; falls as half a cosine
    decay_steps: int = 3_000_000  # until it is 0
    # Deviation: of the actor's matrices, as in the paper's script; the authors' later
    # one decays every parameter of the actor, by 1e-4.
    weight_decay: float = 0.0
    dropout: float = 0.1  # of the actor, while it is trained
    actor_tau: float = 0.001  # averaged actor, which acts
    critic_lr: float = 3e-4  # critics and value
    expectile: float = 0.7  # 0.9 for AntMaze
    # Deviation: the paper's script has 1024 for the actor, twice an update, and 256 for
    # the critics; this is the authors' later one, with the paper's network.
    batch_size: int = 512
    discount: float = 0.99
    tau: float = 0.005  # target critic
    # diffusion
    diffusion_steps: int = 5
    schedule: str = "vp"
    variance: str = "beta"  # or "posterior"; of the ancestral sampler
    sampler: str = "ancestral"  # or another key of `samplers.SAMPLERS`
    sample_steps: int | None = None  # steps of the chain; None: diffusion_steps
    unroll: int = 1  # steps of the chain laid out in a row
    # networks
    hidden: tuple[int, ...] = (256, 256)  # critics and value
    width: int = 256  # actor
    blocks: int = 3
    step_dim: int = 64
    # acting
    candidates: int = 64  # the paper: 128 for locomotion, 32 for AntMaze
    selection: str = "best"  # or "implicit", the policy whose value V is

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(self, batch_size=32, hidden=(32, 32), step_dim=8)
        shallow = dataclasses.replace(small, width=32, blocks=1, candidates=16)
        return dataclasses.replace(shallow, lr=2e-3, critic_lr=2e-3, actor_tau=0.01)


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Model  # its average acts
    critic: Model  # its average is the target critic
    value: Model


class Draws(NamedTuple):
    """The noise of one update."""

    k: Int[Array, " B"]  # diffusion steps
    noise: Float[Array, "B A"]  # standard normal
    dropout: Float[Array, "blocks B F"]  # masks, divided by the share that is kept


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    schedule: schedules.Schedule  # of the K diffusion steps
    network: ResidualNoiseNetwork  # of the actor
    actor: Actor
    critic: Critic  # of two members
    value: MLP
    implicit_q: expectile.ImplicitQ
    actor_optimizer: optax.GradientTransformation
    optimizer: optax.GradientTransformation  # of critics and value


def summed_squares(error: Float[Array, "B A"]) -> Float[Array, " B"]:
    """Squared error summed over action dimensions, as the authors weigh it."""
    return jnp.sum(jnp.square(error), axis=-1)


def clipping_sampler(
    config: Config, spec: DataSpec, schedule: schedules.Schedule
) -> samplers.Sampler:
    """How candidates are drawn; raises ValueError for bad settings."""
    to_bounds, options = constraints.clip_to(*action_bounds(spec)), {}
    # The authors clip each x_k of their ancestral chain and leave x0_hat as it is.
    if config.sampler == "ancestral":
        options = {
            "step_constraint": to_bounds,
            "constraint": constraints.unconstrained,
        }
    return actors.acting_sampler(config, spec, schedule, **options)


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    shape = config.width, config.blocks, config.step_dim
    network = ResidualNoiseNetwork(spec.action_dim, *shape)
    critic = Critic(config.hidden, 2, nn.relu, XavierDense)
    value = MLP(config.hidden, 1, nn.relu, XavierDense)
    return Parts(
        config,
        schedule,
        network,
        actors.diffusion(network, spec, clipping_sampler(config, spec, schedule)),
        critic,
        value,
        expectile.implicit_q(
            critic.apply,
            value_function(value),
            config.expectile,
            config.discount,
            over_critics=jnp.mean,
        ),
        adamw(config.lr, config.decay_steps, config.weight_decay),
        adam(config.critic_lr),
    )


def actor_loss(
    params: Params, parts: Parts, batch: Transition, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """Denoising loss of the behaviour, with dropout."""

    def predict(x_k: Array, k: Array) -> Any:
        seen = batch.observation
        return parts.network.apply(params, x_k, k, seen, draws.dropout)

    inputs = parts.schedule, predict, batch.action, draws.k, draws.noise
    bc_loss = losses.denoising_loss(*inputs, error=summed_squares)
    return bc_loss, {"bc_loss": bc_loss}


def init(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> TrainState:
    """Fresh networks; the averages are their copies."""
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    observation, action = blank(spec)
    critic = parts.critic.init(critic_key, observation, action)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        actor=start(parts.actor.init(actor_key), parts.actor_optimizer, averaged=True),
        critic=start(critic, parts.optimizer, averaged=True),
        value=start(parts.value.init(value_key, observation), parts.optimizer),
    )


def draw(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    config = parts.config
    k_key, noise_key, dropout_key = jax.random.split(key, 3)
    masks = (config.blocks, config.batch_size, config.width)
    return Draws(
        k=jax.random.randint(k_key, (config.batch_size,), 0, config.diffusion_steps),
        noise=jax.random.normal(noise_key, (config.batch_size, spec.action_dim)),
        dropout=draw_dropout(dropout_key, config.dropout, masks),
    )


def update_step(
    parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[TrainState, Metrics]:
    """One step of actor, value and critics."""
    actor, actor_metrics = descend(
        "actor", parts.actor_optimizer, state.actor, actor_loss, parts, batch, draws
    )
    inputs = parts.implicit_q.value_loss, state.critic.average, batch
    value, value_metrics = descend("value", parts.optimizer, state.value, *inputs)
    # The value comes first: the critics regress to the new one.
    inputs = parts.implicit_q.critic_loss, value.params, batch
    critic, critic_metrics = descend("critic", parts.optimizer, state.critic, *inputs)
    new_state = TrainState(
        step=state.step + 1,
        actor=follow(actor, Averaging(parts.config.actor_tau)),
        critic=follow(critic, Averaging(parts.config.tau)),
        value=value,
    )
    return new_state, {**actor_metrics, **value_metrics, **critic_metrics}


def learned(state: TrainState) -> ImplicitPolicy:
    """What acting needs: averaged actor, target critics, and the value of states."""
    value = state.value.params
    return ImplicitPolicy(state.actor.average, state.critic.average, value)


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds IDQL; raises ValueError for settings out of range."""
    del given
    parts, bind = build(config, spec), functools.partial
    select = selection.of_advantages(config.selection, config.expectile)
    return Agent(
        init=bind(init, parts, spec),
        sample_batch=bind(transitions, batch_size=config.batch_size),
        draw=bind(draw, parts, spec),
        update_step=bind(update_step, parts),
        learned=learned,
        acting=actors.best_advantage(
            config.candidates, parts.actor, parts.critic, parts.value, select
        ),
    )
