"""CEP: contrastive energy prediction, and QGPO, its policy (Lu et al. 2023).

"Contrastive Energy Prediction for Exact Energy-Guided Diffusion Sampling in Offline
Reinforcement Learning", ICML 2023, arXiv:2304.12824.  The best policy near the
behaviour mu is mu(a | s) exp(alpha Q(s, a)) / Z.  Noised, it is the noised mu times
exp E_k(a_k, s), where E_k = log E[exp(alpha Q) | a_k, s]: the score of a diffusion that
clones mu plus the gradient of E_k is its score.

The behaviour is a run of its own, `--config.given.behaviour=FOLDER`, and stays as it
is.  This stage learns Q and the energy from actions that the behaviour draws.

| paper | here |
|---|---|
| contrastive energy prediction | `energy_loss` |
| in-support softmax Q-learning | `in_support_value`, `critic_loss` |
| energy-guided sampling | `guidance.energy` |

The defaults are those of the authors' code: weights softmax(alpha Q) within a group in
the place of exp(alpha Q), and critics that learn in the first half of the updates only.
`critic="iql"` has the critics of implicit Q-learning instead, whose targets need no
sampled actions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdql.agents import critics
from jdql.agents.base import Agent, Given, Metrics, Stages, acts, blank
from jdql.checks import at_least, one_of
from jdql.data.sampling import transitions
from jdql.diffusion import guidance, process, schedules
from jdql.networks.energy import EnergyNetwork
from jdql.networks.mlp import MLP, Critic, value_function
from jdql.optim import Averaging, Model, adam, descend, follow, start
from jdql.rl import expectile, targets
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition

GIVEN = {"behaviour": ("diffusion_bc",)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors' for locomotion."""

    alpha: float = 3.0  # inverse temperature of the policy, in the energy
    q_alpha: float = 3.0  # and in the critics' targets
    guidance: float = 1.0  # weight of the energy when acting; they play 0 to 10
    support: int = 16  # actions of the behaviour for each state; antmaze: 32
    critic: str = "in_support"  # or "iql"
    # Updates in which the critics learn; None: all.  The energy learns in all.
    critic_updates: int | None = 500_000
    expectile: float = 0.7  # iql
    lr: float = 3e-4  # energy
    critic_lr: float = 3e-4  # critics and V
    batch_size: int = 256
    discount: float = 0.99
    tau: float = 0.005  # target critics
    # networks
    hidden: tuple[int, ...] = (256, 256, 256)  # critics and V
    energy_hidden: tuple[int, ...] = (256, 256, 256, 256)
    time_dim: int = 32

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(self, batch_size=32, hidden=(32, 32), support=6)
        quick = dataclasses.replace(small, lr=2e-3, critic_lr=2e-3, time_dim=8)
        return dataclasses.replace(quick, energy_hidden=(32, 32), guidance=3.0)


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    critic: Model  # its average is the target critic
    energy: Model
    value: Model  # V of iql; no parameters otherwise


class Draws(NamedTuple):
    """The noise of one update; the chains are those of the behaviour's sampler."""

    support: Any  # of N actions in each of B states
    next_support: Any  # of N actions in each next state; of none for iql
    k: Int[Array, " B"]  # diffusion step of each group
    noise: Float[Array, "B N A"]


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    behaviour: Given
    schedule: schedules.Schedule  # of the behaviour's diffusion
    times: np.ndarray  # [K] what the energy is told of each step, in (0, 1]
    critic: Critic  # of two members
    smaller_q: Callable[[Params, Array, Array], Array]
    value: MLP
    implicit_q: expectile.ImplicitQ
    update_critic: Callable[..., tuple[Model, Model, Metrics]]
    energy: EnergyNetwork
    optimizer: optax.GradientTransformation  # of the energy
    critic_optimizer: optax.GradientTransformation


def build(config: Config, given: Stages) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    at_least("support", config.support, 2)
    behaviour = given["behaviour"]
    schedule = behaviour.agent.model.schedule
    critic = Critic(config.hidden, 2, nn.relu)
    value = MLP(config.hidden, 1, nn.relu)
    value_of = value_function(value)
    return Parts(
        config,
        behaviour,
        schedule,
        np.arange(1, schedule.steps + 1) / schedule.steps,
        critic,
        critics.smaller_q(critic),
        value,
        expectile.implicit_q(
            critic.apply, value_of, config.expectile, config.discount, jnp.mean
        ),
        one_of("critic", config.critic, CRITICS),
        EnergyNetwork(config.energy_hidden, config.time_dim),
        adam(config.lr),
        adam(config.critic_lr),
    )


def draw_support(
    parts: Parts, observation: Float[Array, "B O"], draws: Any
) -> Float[Array, "B N A"]:
    """N actions of the behaviour in each state."""
    # Deviation: drawn anew in each update; the authors draw them once for every state.
    repeated = jnp.repeat(observation[:, None], parts.config.support, axis=1)
    actor, learned = parts.behaviour.agent.model.actor, parts.behaviour.learned
    return jax.lax.stop_gradient(actor.sample(learned, repeated, draws))


def q_of_support(
    parts: Parts, critic: Params, observation: Array, support: Float[Array, "B N A"]
) -> Float[Array, "B N"]:
    """The smaller critic of every action."""
    repeated = jnp.repeat(observation[:, None], support.shape[1], axis=1)
    return parts.smaller_q(critic, repeated, support)


def in_support_value(
    q: Float[Array, "B N"], alpha: float | Float[Array, ""]
) -> Float[Array, " B"]:
    """sum_i softmax_i(alpha Q_i) Q_i: the value of the policy within the support."""
    return jnp.sum(jax.nn.softmax(alpha * q, axis=1) * q, axis=1)


def critic_loss(
    params: Params, parts: Parts, value: Float[Array, " B"], batch: Transition
) -> tuple[Float[Array, ""], Metrics]:
    """The mean of both critics' errors against r + gamma V(s')."""
    q = parts.critic.apply(params, batch.observation, batch.action)
    return targets.td_loss(q, batch, value, parts.config.discount, jnp.mean)


def update_in_support(
    parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[Model, Model, Metrics]:
    """One step of the critics towards values within the behaviour's support."""
    seen_next = batch.next_observation
    support = draw_support(parts, seen_next, draws.next_support)
    q = q_of_support(parts, state.critic.average, seen_next, support)
    value = in_support_value(q, parts.config.q_alpha)
    critic, metrics = descend(
        "critic", parts.critic_optimizer, state.critic, critic_loss, parts, value, batch
    )
    return follow(critic, Averaging(parts.config.tau)), state.value, metrics


def update_iql(
    parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[Model, Model, Metrics]:
    """One step of IQL's value and critics; the value comes first."""
    del draws
    optimizer, losses = parts.critic_optimizer, parts.implicit_q
    inputs = losses.value_loss, state.critic.average, batch
    value, value_metrics = descend("value", optimizer, state.value, *inputs)
    inputs = losses.critic_loss, value.params, batch
    critic, metrics = descend("critic", optimizer, state.critic, *inputs)
    critic = follow(critic, Averaging(parts.config.tau))
    return critic, value, {**value_metrics, **metrics}


CRITICS = {"in_support": update_in_support, "iql": update_iql}


def energy_loss(
    params: Params,
    parts: Parts,
    critic: Params,
    observation: Float[Array, "B O"],
    support: Float[Array, "B N A"],
    k: Int[Array, " B"],
    noise: Float[Array, "B N A"],
) -> tuple[Float[Array, ""], Metrics]:
    """Cross entropy of softmax(alpha Q) and softmax(energy) over N noised actions."""
    q = q_of_support(parts, critic, observation, support)
    weights = jax.nn.softmax(parts.config.alpha * q, axis=1)
    noisy = process.forward_noise(parts.schedule, support, k, noise)
    repeated = jnp.repeat(observation[:, None], support.shape[1], axis=1)
    time = jnp.asarray(parts.times, noisy.dtype)[k][:, None]
    energies = parts.energy.apply(params, noisy, time, repeated)
    loss = guidance.contrastive_energy_loss(energies, weights)
    # log N is the loss of an energy that tells nothing.
    return loss, {"largest_weight": jnp.mean(jnp.max(weights, axis=1))}


def init(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> TrainState:
    """Fresh networks; the target critics are copies."""
    critic_key, energy_key, value_key = jax.random.split(key, 3)
    observation, action = blank(spec)
    critic = parts.critic.init(critic_key, observation, action)
    energy = parts.energy.init(energy_key, action, jnp.zeros(1), observation)
    uses_value = parts.update_critic is update_iql
    value = parts.value.init(value_key, observation) if uses_value else {}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        critic=start(critic, parts.critic_optimizer, averaged=True),
        energy=start(energy, parts.optimizer),
        value=start(value, parts.critic_optimizer),
    )


def draw(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    actor, B, N = (
        parts.behaviour.agent.model.actor,
        parts.config.batch_size,
        parts.config.support,
    )
    support_key, next_key, k_key, noise_key = jax.random.split(key, 4)
    next_rows = 0 if parts.update_critic is update_iql else B
    return Draws(
        support=actor.draw(support_key, (B, N)),
        next_support=actor.draw(next_key, (next_rows, N)),
        k=jax.random.randint(k_key, (B,), 0, parts.schedule.steps),
        noise=jax.random.normal(noise_key, (B, N, spec.action_dim)),
    )


def update_step(
    parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[TrainState, Metrics]:
    """The critics come first: the energy follows the new target critics."""
    critic, value, critic_metrics = parts.update_critic(parts, state, batch, draws)
    if parts.config.critic_updates is not None:
        learns = state.step < parts.config.critic_updates
        critic, value = jax.tree.map(
            lambda new, old: jnp.where(learns, new, old),
            (critic, value),
            (state.critic, state.value),
        )
    support = draw_support(parts, batch.observation, draws.support)
    energy, metrics = descend(
        "energy",
        parts.optimizer,
        state.energy,
        energy_loss,
        parts,
        critic.average,
        batch.observation,
        support,
        draws.k,
        draws.noise,
    )
    new_state = TrainState(state.step + 1, critic, energy, value)
    return new_state, {**metrics, **critic_metrics}


def learned(state: TrainState) -> Params:
    """What acting needs of this stage: the energy."""
    return state.energy.params


def plan(
    parts: Parts, learned: Params, observation: Float[Array, " O"], key: PRNGKeyArray
) -> Float[Array, " A"]:
    """One action of the behaviour, guided by the energy at every step."""
    times = jnp.asarray(parts.times, jnp.float32)

    def energy_of(noisy: Array, k: Array) -> Array:
        # A sampler may stop between the trained steps.
        time = jnp.interp(k, jnp.arange(len(times)), times)
        return parts.energy.apply(learned, noisy, time, observation)

    actor, behaviour = parts.behaviour.agent.model.actor, parts.behaviour.learned
    guide = guidance.energy(energy_of, parts.config.guidance)
    return actor.sample(behaviour, observation, actor.draw(key, ()), guide=guide)


def make(config: Config, spec: DataSpec, given: Stages) -> Agent:
    """Builds the second stage of CEP.

    Args:
      config: settings.
      spec: sizes and action bounds of the data.
      given: `behaviour`, whose model is a `diffusion_bc.Behaviour`.

    Raises:
      ValueError: for settings out of range.
    """
    parts, bind = build(config, given), functools.partial
    return Agent(
        init=bind(init, parts, spec),
        sample_batch=bind(transitions, batch_size=config.batch_size),
        draw=bind(draw, parts, spec),
        update_step=bind(update_step, parts),
        learned=learned,
        acting=acts(bind(plan, parts)),
    )
