"""Diffusion-QL (Wang, Hunt & Zhou, ICLR 2023, arXiv:2208.06193).

| paper | here |
|---|---|
| eq. 1, the reverse chain as policy pi(a | s) | `actors.diffusion` |
| eq. 2, L_d, the behaviour-cloning loss | `losses.denoising_loss` |
| eq. 3, L = L_d + L_q, with alpha = eta / E abs(Q) | `actor_loss` |
| eq. 4, double Q-learning | `critic_loss` |
| algorithm 1 | `update_step` |

The defaults are those of the authors' code, which differs from the paper's text: the
variance of the chain is the posterior's, x0_hat is clipped at every step, and acting
draws 50 candidates and picks one by softmax over the target critic's values.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents import actors, critics
from jdql.agents.actors import Actor, ActorCritic
from jdql.agents.base import NOTHING, Agent, Metrics, Stages, blank
from jdql.data.sampling import transitions
from jdql.diffusion import losses, reverse, schedules
from jdql.networks.mlp import Critic, NoiseNetwork
from jdql.optim import Averaging, Model, adam, descend, follow, start
from jdql.rl import selection
from jdql.rl.improvement import normalised_q_loss
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors' (their main.py), for tasks without a row."""

    # policy improvement
    eta: float = 1.0  # weight of the Q term; table 3
    lr: float = 3e-4  # actor; table 3
    critic_lr: float = 3e-4  # the same for every task
    # Both rates fall to 0 as half a cosine in so many updates; None: they stay.  The
    # authors' program can do it, and ends at 0.999 of the rate for every task.
    decay_steps: int | None = None
    grad_norm: float | None = 5.0  # both networks; None: no clipping
    max_q_backup: bool = False  # target: best of `backup_actions` actions; table 3
    backup_actions: int = 10
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
    variance: str = "posterior"  # or "beta", the paper's text
    unroll: int = 1  # steps of the chain laid out in a row
    remat: bool = False
    # networks
    hidden: tuple[int, ...] = (256, 256, 256)
    step_dim: int = 16
    # acting
    candidates: int = 50
    temperature: float = 1.0  # of the softmax over Q; 0 takes the best candidate
    sampler: str = "ancestral"  # acting only: training runs the full chain
    sample_steps: int | None = None  # acting only; None: diffusion_steps

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(self, batch_size=32, hidden=(32, 32), step_dim=8)
        few = dataclasses.replace(small, diffusion_steps=5, backup_actions=2)
        few = dataclasses.replace(few, schedule="vp", sample_steps=None)
        quick = dataclasses.replace(few, lr=2e-3, critic_lr=2e-3, candidates=4)
        return dataclasses.replace(quick, ema_every=2, ema_start=2)


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Model  # its average acts in the targets
    critic: Model  # its average is the target critic


class Draws(NamedTuple):
    """The noise of one update.

    Attributes:
      target: chain of the next actions, over B (with max-Q backup, over 10 B) rows.
      k: `[B]` diffusion steps of the cloning loss.
      noise: `[B, A]` its noise.
      improvement: chain of the policy's actions.
      coin: uniform in [0, 1); above one half, Q_1 is raised and Q_2 normalises.
    """

    target: reverse.ChainDraws
    k: Int[Array, " B"]
    noise: Float[Array, "B A"]
    improvement: reverse.ChainDraws
    coin: Float[Array, ""]


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    schedule: schedules.Schedule  # of the K diffusion steps
    actor: Actor  # samples as the policy acts
    chain: Actor  # the same network with the full chain, for training
    critic: Critic  # of two members
    actor_optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    network = NoiseNetwork(spec.action_dim, config.hidden, config.step_dim)
    full = actors.full_chain(config, spec, schedule, remat=config.remat)
    return Parts(
        config,
        schedule,
        actor=actors.noise_mlp(config, spec, schedule),
        chain=actors.diffusion(network, spec, full),
        critic=Critic(config.hidden),
        actor_optimizer=adam(config.lr, config.grad_norm, config.decay_steps),
        critic_optimizer=adam(config.critic_lr, config.grad_norm, config.decay_steps),
    )


def critic_loss(
    params: Params, parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """Eq. 4: both critics regress to r + gamma min_i Q'_i(s', a')."""
    chain, gamma = parts.chain, parts.config.discount
    return critics.double_q_loss(
        params, parts.critic, chain, state, batch, draws.target, gamma
    )


def actor_loss(
    params: Params, parts: Parts, critic: Params, batch: Transition, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """Eq. 3: L_d + eta L_q."""
    # L_d: predict the noise in the data's actions.
    bc_loss = losses.denoising_loss(
        parts.schedule,
        parts.chain.predict(params, batch.observation),
        batch.action,
        draws.k,
        draws.noise,
    )
    # L_q: raise one critic at the policy's own actions, through the chain (eq. 1).
    action = parts.chain.sample(params, batch.observation, draws.improvement)
    q = parts.critic.apply(critic, batch.observation, action)
    q_loss = normalised_q_loss(q, draws.coin > 0.5)
    metrics = {"bc_loss": bc_loss, "q_loss": q_loss}
    return bc_loss + parts.config.eta * q_loss, metrics


def init(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> TrainState:
    """Fresh networks; the averages are their copies."""
    actor_key, critic_key = jax.random.split(key)
    actor = parts.actor.init(actor_key)
    critic = parts.critic.init(critic_key, *blank(spec))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        actor=start(actor, parts.actor_optimizer, averaged=True),
        critic=start(critic, parts.critic_optimizer, averaged=True),
    )


def draw(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    config = parts.config
    B, N = config.batch_size, config.backup_actions if config.max_q_backup else 1
    target_key, k_key, noise_key, chain_key, coin_key = jax.random.split(key, 5)
    return Draws(
        target=parts.chain.draw(target_key, (B * N,)),
        k=jax.random.randint(k_key, (B,), 0, config.diffusion_steps),
        noise=jax.random.normal(noise_key, (B, spec.action_dim)),
        improvement=parts.chain.draw(chain_key, (B,)),
        coin=jax.random.uniform(coin_key),
    )


def update_step(
    parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[TrainState, Metrics]:
    """One pass of algorithm 1."""
    config = parts.config
    inputs = parts, state, batch, draws
    critic, critic_metrics = descend(
        "critic", parts.critic_optimizer, state.critic, critic_loss, *inputs
    )
    # The critic comes first: the policy is improved on the new one.
    inputs = parts, critic.params, batch, draws
    actor, actor_metrics = descend(
        "actor", parts.actor_optimizer, state.actor, actor_loss, *inputs
    )
    # Never synchronised: before `ema_start` the targets act by the initial actor.
    rule = Averaging(1 - config.ema_decay, config.ema_start, config.ema_every)
    new_state = TrainState(
        step=state.step + 1,
        actor=follow(actor, rule, count=state.step),
        critic=follow(critic, Averaging(config.tau)),
    )
    return new_state, {**actor_metrics, **critic_metrics}


def learned(state: TrainState) -> ActorCritic:
    """What acting needs: the online actor and the target critic."""
    return ActorCritic(state.actor.params, state.critic.average)


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds Diffusion-QL; raises ValueError for settings out of range."""
    del given
    parts, bind = build(config, spec), functools.partial
    value = critics.smaller_q(parts.critic)
    select = selection.softmax(config.temperature)
    return Agent(
        init=bind(init, parts, spec),
        sample_batch=bind(transitions, batch_size=config.batch_size),
        draw=bind(draw, parts, spec),
        update_step=bind(update_step, parts),
        learned=learned,
        acting=actors.best_of(config.candidates, parts.actor, value, select),
    )
