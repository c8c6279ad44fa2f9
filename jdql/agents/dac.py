"""Diffusion actor-critic (Fang et al., ICLR 2025, arXiv:2405.20555).

The best policy within a divergence of the behaviour policy is the latter times
exp(Q / eta); its score is the behaviour's plus the gradient of Q / eta.  So the noise
network regresses on the noise of the data minus sigma_k times that gradient, at the
noisy action itself: no chain is differentiated.

| paper | here |
|---|---|
| eta E abs(eps - eps_hat)^2 + E sigma_k grad Q(a_k) . eps_hat | `guided` |
| dual ascent of eta, so that E abs(eps - eps_hat)^2 <= b | `improvement.dual_ascent` |
| targets: mean - rho std of the critics | `targets.lower_confidence_bound` |
| algorithm 1 | `update_step` |

The defaults are those of the authors' code: ten critics, targets that average ten
sampled actions, and the best of ten candidates when acting.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents import actors, critics
from jdql.agents.actors import Actor, ActorCritic
from jdql.agents.base import NOTHING, Agent, Metrics, Stages, blank
from jdql.checks import at_least
from jdql.data.sampling import transitions
from jdql.diffusion import process, reverse, schedules
from jdql.networks.layers import XavierDense
from jdql.networks.mlp import Critic, NoiseNetwork
from jdql.optim import Averaging, Model, adamw, descend, follow, start
from jdql.rl import improvement, selection, targets
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors', for medium and medium-replay data."""

    # policy improvement
    eta: float = 1.0  # weight of cloning; at first, where it is learned
    eta_lr: float | None = 1e-3  # of the dual ascent; None: eta stays (antmaze: 0.1)
    eta_min: float = 1e-3
    eta_max: float = 100.0
    bc_threshold: float = 1.0  # cloning loss that eta aims at, 1 being that of no model
    lr: float = 3e-4  # actor
    critic_lr: float = 3e-4
    decay_steps: int = 2_000_000  # both rates fall to 0 as half a cosine
    grad_norm: float | None = 1.0  # both networks; None: no clipping
    # targets
    critics: int = 10
    rho: float = 1.0  # standard deviations below the mean of the critics
    backup_actions: int = 10  # next actions of which the target is the mean
    max_q_backup: bool = False  # the largest value of theirs instead (antmaze)
    batch_size: int = 256
    discount: float = 0.99
    tau: float = 0.005  # target critic, every update
    # averaged actor, which acts in the targets
    ema_decay: float = 0.995
    ema_every: int = 5
    ema_start: int = 1000
    # diffusion
    diffusion_steps: int = 5
    schedule: str = "vp"
    variance: str = "beta"
    unroll: int = 1  # steps of the chain laid out in a row
    # networks
    hidden: tuple[int, ...] = (256, 256, 256)
    step_dim: int = 16
    # acting
    candidates: int = 10
    temperature: float = 0.0  # of a softmax over Q; 0 takes the best candidate
    sampler: str = "ancestral"  # acting only: targets run the full chain
    sample_steps: int | None = None  # acting only; None: diffusion_steps

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(self, batch_size=32, hidden=(32, 32), step_dim=8)
        few = dataclasses.replace(small, critics=3, backup_actions=2, candidates=4)
        quick = dataclasses.replace(few, lr=2e-3, critic_lr=2e-3, ema_every=2)
        return dataclasses.replace(quick, ema_start=2)


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Model  # its average acts in the targets
    critic: Model  # its average are the target critics
    eta: Float[Array, ""]


class Draws(NamedTuple):
    """The noise of one update."""

    target: reverse.ChainDraws  # of the next actions, B times `backup_actions` rows
    k: Int[Array, " B"]  # diffusion steps of the actor's loss
    noise: Float[Array, "B A"]  # of the actor's loss


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    schedule: schedules.Schedule  # of the K diffusion steps
    actor: Actor  # samples as the policy acts
    chain: Actor  # the same network with the full chain, for the targets
    critic: Critic
    over_actions: Callable[..., Array]  # of the next actions' values
    actor_optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation


def guided(
    eta: Float[Array, ""],
    noise: Float[Array, "B A"],
    predicted: Float[Array, "B A"],
    guidance: Float[Array, "B A"],
) -> tuple[Float[Array, ""], Metrics]:
    """eta mean (eps_hat - eps)^2 + mean(g eps_hat), both means over B and A.

    Its minimiser is eps_hat = E[eps] - g / (2 eta).

    Args:
      eta: weight of cloning.
      noise: in the noisy action.
      predicted: by the network.
      guidance: g = sigma_k grad Q(s, a_k), in units of mean abs(Q).

    Returns:
      The loss, and its two terms before eta.
    """
    bc_loss = jnp.mean(jnp.square(predicted - noise))
    guidance_loss = jnp.mean(guidance * predicted)
    metrics = {"bc_loss": bc_loss, "guidance_loss": guidance_loss}
    return eta * bc_loss + guidance_loss, metrics


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    at_least("critics", config.critics)
    at_least("backup_actions", config.backup_actions)
    # The authors put beta_0 = 0 in front and let k run over 1..K: their step 0 is the
    # clean action, at which nothing is learned, and their step k is k - 1 here.
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    # Deviation: the noise network is Diffusion-QL's: other first weights, and features
    # of the step of half the width.
    network = NoiseNetwork(spec.action_dim, config.hidden, config.step_dim)
    full = actors.full_chain(config, spec, schedule)
    return Parts(
        config,
        schedule,
        actors.noise_mlp(config, spec, schedule),
        actors.diffusion(network, spec, full),
        Critic(config.hidden, config.critics, dense=XavierDense),
        jnp.max if config.max_q_backup else jnp.mean,
        adamw(config.lr, config.decay_steps, grad_norm=config.grad_norm),
        adamw(config.critic_lr, config.decay_steps, grad_norm=config.grad_norm),
    )


def critic_loss(
    params: Params, parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """Every critic regresses to r + gamma (mean - rho std of the target critics)."""
    config = parts.config
    next_q = critics.sampled_q(
        parts.chain,
        state.actor.average,
        parts.critic,
        state.critic.average,
        batch.next_observation,
        draws.target,
    )
    each = parts.over_actions(next_q, axis=-1)
    value = targets.lower_confidence_bound(each, config.rho)
    q = parts.critic.apply(params, batch.observation, batch.action)
    # A mean over the critics, where Diffusion-QL has a sum: the bound of the gradient
    # norm tells them apart.
    loss, metrics = targets.td_loss(q, batch, value, config.discount, jnp.mean)
    return loss, {**metrics, "q_std": jnp.mean(jnp.std(q, axis=0))}


def q_gradient(
    parts: Parts, critic: Params, batch: Transition, noisy: Float[Array, "B A"]
) -> Float[Array, "B A"]:
    """Of the critics' mean at noisy actions, in units of mean abs(Q) of the data's."""
    q = parts.critic.apply(critic, batch.observation, batch.action)

    def total(action: Array) -> Array:
        values = parts.critic.apply(critic, batch.observation, action)
        return jnp.sum(jnp.mean(values, axis=0))

    return jax.grad(total)(noisy) / (jnp.mean(jnp.abs(q)) + 1e-6)


def actor_loss(
    params: Params,
    parts: Parts,
    eta: Array,
    critic: Params,
    batch: Transition,
    draws: Draws,
) -> tuple[Float[Array, ""], Metrics]:
    """`guided`, with the gradient of the target critics at the noisy actions."""
    schedule, k, noise = parts.schedule, draws.k, draws.noise
    noisy = process.forward_noise(schedule, batch.action, k, noise)
    gradient = q_gradient(parts, critic, batch, noisy)
    guidance = process.at(schedule.noise, k, noisy) * gradient
    predicted = parts.actor.predict(params, batch.observation)(noisy, k)
    return guided(eta, noise, predicted, guidance)


def init(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> TrainState:
    """Fresh networks; the averages are their copies."""
    actor_key, critic_key = jax.random.split(key)
    actor = parts.actor.init(actor_key)
    critic = parts.critic.init(critic_key, *blank(spec))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        actor=start(actor, parts.actor_optimizer, averaged=True),
        critic=start(critic, parts.critic_optimizer, averaged=True),
        eta=jnp.asarray(parts.config.eta, jnp.float32),
    )


def draw(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    B, config = parts.config.batch_size, parts.config
    target_key, k_key, noise_key = jax.random.split(key, 3)
    return Draws(
        target=parts.chain.draw(target_key, (B * config.backup_actions,)),
        k=jax.random.randint(k_key, (B,), 0, config.diffusion_steps),
        noise=jax.random.normal(noise_key, (B, spec.action_dim)),
    )


def update_eta(parts: Parts, eta: Array, bc_loss: Array) -> Float[Array, ""]:
    """The multiplier after the update; it stays where it is not learned."""
    config = parts.config
    if config.eta_lr is None:
        return eta
    bounds = config.eta_min, config.eta_max
    return improvement.dual_ascent(
        eta, config.eta_lr, bc_loss - config.bc_threshold, bounds
    )


def update_step(
    parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[TrainState, Metrics]:
    """The critics come first: the actor follows the new target critics."""
    config, optimizer = parts.config, parts.critic_optimizer
    critic, critic_metrics = descend(
        "critic", optimizer, state.critic, critic_loss, parts, state, batch, draws
    )
    critic = follow(critic, Averaging(config.tau))
    inputs = parts, state.eta, critic.average, batch, draws
    actor, actor_metrics = descend(
        "actor", parts.actor_optimizer, state.actor, actor_loss, *inputs
    )
    # The cloning loss is that of the actor before its step, as in the authors' code.
    eta = update_eta(parts, state.eta, actor_metrics["bc_loss"])
    # The authors count the updates before this one, and start after `ema_start`.
    rule = Averaging(1 - config.ema_decay, config.ema_start + 1, config.ema_every)
    actor = follow(actor, rule, count=state.step)
    new_state = TrainState(state.step + 1, actor, critic, eta)
    return new_state, {**actor_metrics, **critic_metrics, "eta": eta}


def learned(state: TrainState) -> ActorCritic:
    """What acting needs: the online actor and the target critics."""
    return ActorCritic(state.actor.params, state.critic.average)


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds the diffusion actor-critic; raises ValueError for bad settings."""
    del given
    parts, bind = build(config, spec), functools.partial

    def value(params: Params, observation: Array, action: Array) -> Array:
        return jnp.mean(parts.critic.apply(params, observation, action), axis=0)

    select = selection.softmax(config.temperature)
    return Agent(
        init=bind(init, parts, spec),
        sample_batch=bind(transitions, batch_size=config.batch_size),
        draw=bind(draw, parts, spec),
        update_step=bind(update_step, parts),
        learned=learned,
        acting=actors.best_of(config.candidates, parts.actor, value, select),
    )
