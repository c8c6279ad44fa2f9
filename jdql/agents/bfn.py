"""Best-of-N flow with temporal differences (BFN), the QC of Li, Zhou & Levine (2025).

The policy is implicit: of N actions of a flow that clones the behaviour, the one that
the critic values most.  The same policy acts and makes the critic's targets.

| paper (arXiv:2507.07969) | here |
|---|---|
| flow-matching loss of the behaviour policy | `flow.flow_loss` |
| a* = argmax of Q over N samples | `best_action` |
| target of a chunk, sum gamma^i r_i + gamma^h Q'(s_h, a*) | `critic_loss` |
| chunks of h actions | `chunks`, `sampling.chunks` |

The critic chooses and the target critic values, as in the authors' code, and the target
critic follows the critic from before the update.  With
`chunk` = h > 1 an action is a chunk of h, flattened.  A chunk may begin anywhere; where
it goes beyond the end of its episode, the cloning loss counts the steps before the end
only, and the critic does not learn from it (with `cut_chunks` it does where the end is
a true one).  Acting carries out a chunk without looking, then plans anew.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents import actors
from jdql.agents.actors import Actor, ActorCritic
from jdql.agents.base import NOTHING, Agent, Metrics, Stages, blank
from jdql.checks import at_least
from jdql.data import sampling
from jdql.diffusion import flow
from jdql.networks.mlp import Critic, VelocityNetwork, gelu_critic
from jdql.optim import Averaging, Model, adam, descend, follow, start
from jdql.rl import chunks, ensembles, selection
from jdql.types import Array, Chunk, DataSpec, Float, Int, Params, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors' for single actions (best of 4)."""

    q_agg: str = "mean"  # of the critics, choosing and valuing; or "min"
    lr: float = 3e-4  # flow
    critic_lr: float = 3e-4
    batch_size: int = 256
    action_limit: float = 1 - 1e-5  # of the data's actions, as a share of the bounds
    discount: float = 0.99
    tau: float = 0.005  # target critic, every update
    # flow
    flow_steps: int = 10
    unroll: int = 1  # steps of the flow laid out in a row
    # action chunks
    chunk: int = 1  # h; QC: 5
    cut_chunks: bool = False  # the critic learns from chunks that a true end cuts
    # networks
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    # the policy, in targets and when acting
    candidates: int = 4  # N; QC: 32

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(self, batch_size=32, hidden=(32, 32), flow_steps=5)
        return dataclasses.replace(small, lr=2e-3, critic_lr=2e-3, candidates=8)


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Model
    critic: Model  # its average is the target critic


class Draws(NamedTuple):
    """The noise of one update; D = h A numbers make a chunk."""

    next_noise: Float[Array, "B N D"]  # of the next actions
    time: Float[Array, " B"]  # of the cloning loss, uniform
    noise: Float[Array, "B D"]  # of the cloning loss


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    actor: Actor
    critic: Critic  # of two members
    aggregate: Callable[[Array], Array]  # of the critics
    actor_optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation

    def value(
        self,
        params: Params,
        observation: Float[Array, "*B O"],
        action: Float[Array, "*B D"],
    ) -> Float[Array, "*B"]:
        """Q of the ensemble."""
        return self.aggregate(self.critic.apply(params, observation, action))


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    size = at_least("chunk", config.chunk) * spec.action_dim
    actor = actors.flowing(
        VelocityNetwork(size, config.hidden),
        spec,
        config.flow_steps,
        unroll=config.unroll,
        length=config.chunk,
    )
    return Parts(
        config,
        actor,
        gelu_critic(config.hidden),
        ensembles.aggregate(config.q_agg),
        adam(config.lr),
        adam(config.critic_lr),
    )


def best_action(
    parts: Parts,
    state: TrainState,
    observation: Float[Array, "B O"],
    noise: Float[Array, "B N D"],
) -> Float[Array, "B D"]:
    """The chunk, of N for each observation, that the critic values most."""
    repeated = jnp.repeat(observation[:, None], noise.shape[1], axis=1)
    action = parts.actor.sample(state.actor.params, repeated, noise)
    q = parts.value(state.critic.params, repeated, action)
    return selection.take(action, jnp.argmax(q, axis=-1))


def critic_loss(
    params: Params, parts: Parts, state: TrainState, batch: Chunk, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """Regression to sum gamma^i r_i + gamma^h Q'(s_h, a*)."""
    seen_next = batch.next_observation
    action = best_action(parts, state, seen_next, draws.next_noise)
    value = parts.value(state.critic.average, seen_next, action)
    q = parts.critic.apply(params, batch.observation, chunks.flat_action(batch))
    config = parts.config
    return chunks.chunk_td_loss(q, batch, value, config.discount, config.cut_chunks)


def actor_loss(
    params: Params, parts: Parts, batch: Chunk, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """Flow matching of the behaviour."""
    bc_loss = flow.flow_loss(
        parts.actor.predict(params, batch.observation),
        chunks.flat_action(batch),
        draws.time,
        draws.noise,
        error=chunks.masked_error(batch),
    )
    return bc_loss, {"bc_loss": bc_loss}


def init(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> TrainState:
    """Fresh networks; the target critics are copies."""
    actor_key, critic_key = jax.random.split(key)
    observation, action = blank(spec)
    action = jnp.tile(action, parts.config.chunk)
    critic = parts.critic.init(critic_key, observation, action)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        actor=start(parts.actor.init(actor_key), parts.actor_optimizer),
        critic=start(critic, parts.critic_optimizer, averaged=True),
    )


def draw(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    B, N = parts.config.batch_size, parts.config.candidates
    D = parts.config.chunk * spec.action_dim
    next_key, time_key, noise_key = jax.random.split(key, 3)
    return Draws(
        next_noise=jax.random.normal(next_key, (B, N, D)),
        time=jax.random.uniform(time_key, (B,)),
        noise=jax.random.normal(noise_key, (B, D)),
    )


def update_step(
    parts: Parts, state: TrainState, batch: Chunk, draws: Draws
) -> tuple[TrainState, Metrics]:
    """One step of both networks, each by the gradient at the old parameters."""
    optimizer = parts.critic_optimizer
    critic, critic_metrics = descend(
        "critic", optimizer, state.critic, critic_loss, parts, state, batch, draws
    )
    optimizer = parts.actor_optimizer
    actor, actor_metrics = descend(
        "actor", optimizer, state.actor, actor_loss, parts, batch, draws
    )
    rule, before = Averaging(parts.config.tau), state.critic.params
    critic = follow(critic, rule, towards=before)
    new_state = TrainState(state.step + 1, actor, critic)
    return new_state, {**actor_metrics, **critic_metrics}


def learned(state: TrainState) -> ActorCritic:
    """What acting needs: the flow, and the critic that chooses."""
    return ActorCritic(state.actor.params, state.critic.params)


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds best-of-N flow; raises ValueError for settings out of range."""
    del given
    parts, bind = build(config, spec), functools.partial
    h, N = config.chunk, config.candidates
    sample = bind(sampling.chunks, batch_size=config.batch_size, length=h)
    greedy = selection.greedy
    return Agent(
        init=bind(init, parts, spec),
        sample_batch=actors.off_bounds(sample, spec, config.action_limit),
        draw=bind(draw, parts, spec),
        update_step=bind(update_step, parts),
        learned=learned,
        acting=actors.best_of(N, parts.actor, parts.value, greedy, h),
    )
