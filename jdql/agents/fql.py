"""Flow Q-learning (Park, Li & Levine, ICML 2025, arXiv:2502.02538).

A flow clones the behaviour; a student imitates it in one step and raises Q; the flow
never sees a value, and no gradient goes through its integration.

| paper | here |
|---|---|
| L_Flow, behaviour cloning by flow matching | `flow.flow_loss` |
| mu_theta(s, z), the flow integrated by Euler's method | `actors.flowing` |
| L_Distill, alpha E (mu_omega(s, z) - mu_theta(s, z))^2 | `actor_loss` |
| L_Q, the critics' loss | `critic_loss` |
| chunks of h actions (QC-FQL; Li, Zhou & Levine 2025) | `chunks`, `sampling.chunks` |

With `chunk` = h > 1 an action is a chunk of h, flattened, and the target a return of h
steps.  A chunk may begin anywhere; where it goes beyond the end of its episode, the
cloning loss counts the steps before the end only, and the critic does not learn from it
(with `cut_chunks` it does where the end is a true one).  Acting carries out a chunk
without looking, then plans anew.

The defaults are those of the authors' code: targets take the mean of the critics, not
the smallest; all parameters move at once, each by the gradient at the old ones; and the
target critics follow the critics from before the update.
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
from jdql.agents.actors import Actor
from jdql.agents.base import NOTHING, Agent, Metrics, Stages, acts, blank
from jdql.checks import at_least
from jdql.data import sampling
from jdql.diffusion import flow
from jdql.networks.mlp import Critic, OneStepActor, VelocityNetwork, gelu_critic
from jdql.optim import Averaging, Model, adam, descend, follow, start
from jdql.rl import chunks, ensembles
from jdql.rl.improvement import self_normalised_q_loss
from jdql.types import Array, Chunk, DataSpec, Float, Int, Params, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors' (their agents/fql.py)."""

    # policy improvement
    alpha: float = 10.0  # weight of distillation; to be tuned for each task
    normalize_q_loss: bool = False  # divide Q by mean|Q|; alpha is then 0.03 to 10
    q_agg: str = "mean"  # of the critics in targets; "min" for Adroit
    lr: float = 3e-4  # flow and student
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

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(self, batch_size=32, hidden=(32, 32), flow_steps=5)
        # A small alpha: the student pays for leaving the behaviour.
        return dataclasses.replace(small, lr=2e-3, critic_lr=2e-3, alpha=0.1)


class Policies(NamedTuple):
    """The teacher, a flow that clones the behaviour, and its one-step student."""

    flow: Params
    student: Params


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Model  # of `Policies`
    critic: Model  # its average is the target critic


class Draws(NamedTuple):
    """The noise of one update; D = h A numbers make a chunk."""

    next_noise: Float[Array, "B D"]  # of the next actions
    time: Float[Array, " B"]  # of the cloning loss, uniform
    noise: Float[Array, "B D"]  # of the cloning loss
    student_noise: Float[Array, "B D"]  # from which teacher and student act


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    teacher: Actor
    student: OneStepActor
    critic: Critic  # of two members
    aggregate: Callable[[Array], Array]  # of the critics, in targets
    raise_q: Callable[[Array], Array]  # the loss of the student's values
    actor_optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation


def q_loss(q: Float[Array, " B"]) -> Float[Array, ""]:
    """-mean(Q)."""
    return -jnp.mean(q)


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    size = at_least("chunk", config.chunk) * spec.action_dim
    teacher = actors.flowing(
        VelocityNetwork(size, config.hidden),
        spec,
        config.flow_steps,
        unroll=config.unroll,
        length=config.chunk,
    )
    return Parts(
        config,
        teacher,
        OneStepActor(size, config.hidden),
        gelu_critic(config.hidden),
        ensembles.aggregate(config.q_agg),
        self_normalised_q_loss if config.normalize_q_loss else q_loss,
        adam(config.lr),
        adam(config.critic_lr),
    )


def act_at_once(
    parts: Parts,
    params: Params,
    observation: Float[Array, "*B O"],
    noise: Float[Array, "*B D"],
) -> Float[Array, "*B D"]:
    """mu_omega(s, z): the student's action, within bounds."""
    action = parts.student.apply(params, noise, observation)
    return parts.teacher.to_bounds(action)


def critic_loss(
    params: Params, parts: Parts, state: TrainState, batch: Chunk, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """L_Q: r + gamma Q'(s', mu_omega(s', z)), summed over the steps of a chunk."""
    seen_next, student = batch.next_observation, state.actor.params.student
    action = act_at_once(parts, student, seen_next, draws.next_noise)
    value = parts.aggregate(parts.critic.apply(state.critic.average, seen_next, action))
    q = parts.critic.apply(params, batch.observation, chunks.flat_action(batch))
    config = parts.config
    return chunks.chunk_td_loss(q, batch, value, config.discount, config.cut_chunks)


def actor_loss(
    params: Policies, parts: Parts, state: TrainState, batch: Chunk, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """L_Flow + alpha L_Distill - Q of the student's action."""
    seen, noise = batch.observation, draws.student_noise
    # L_Flow: the teacher clones the data's actions.
    bc_loss = flow.flow_loss(
        parts.teacher.predict(params.flow, seen),
        chunks.flat_action(batch),
        draws.time,
        draws.noise,
        error=chunks.masked_error(batch),
    )
    # L_Distill: the student does in one step what the teacher does in many; the teacher
    # is not moved by it.
    taught = parts.teacher.sample(jax.lax.stop_gradient(params.flow), seen, noise)
    action = parts.student.apply(params.student, noise, seen)
    distill_loss = jnp.mean(jnp.square(action - taught))
    # The student raises Q, the mean of the critics from before the update.
    bounded = parts.teacher.to_bounds(action)
    q = parts.critic.apply(state.critic.params, seen, bounded)
    value_loss = parts.raise_q(jnp.mean(q, axis=0))
    metrics = {"bc_loss": bc_loss, "distill_loss": distill_loss, "q_loss": value_loss}
    return bc_loss + parts.config.alpha * distill_loss + value_loss, metrics


def init(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> TrainState:
    """Fresh networks; the target critics are copies."""
    flow_key, student_key, critic_key = jax.random.split(key, 3)
    observation, action = blank(spec)
    action = jnp.tile(action, parts.config.chunk)
    policies = Policies(
        flow=parts.teacher.init(flow_key),
        student=parts.student.init(student_key, action, observation),
    )
    critic = parts.critic.init(critic_key, observation, action)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        actor=start(policies, parts.actor_optimizer),
        critic=start(critic, parts.critic_optimizer, averaged=True),
    )


def draw(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    B, D = parts.config.batch_size, parts.config.chunk * spec.action_dim
    noise_key, time_key = jax.random.split(key)
    next_noise, noise, student_noise = jax.random.normal(noise_key, (3, B, D))
    time = jax.random.uniform(time_key, (B,))
    return Draws(next_noise, time, noise, student_noise)


def update_step(
    parts: Parts, state: TrainState, batch: Chunk, draws: Draws
) -> tuple[TrainState, Metrics]:
    """One step of all networks, each by the gradient at the old parameters."""
    inputs = parts, state, batch, draws
    critic, critic_metrics = descend(
        "critic", parts.critic_optimizer, state.critic, critic_loss, *inputs
    )
    actor, actor_metrics = descend(
        "actor", parts.actor_optimizer, state.actor, actor_loss, *inputs
    )
    rule, before = Averaging(parts.config.tau), state.critic.params
    critic = follow(critic, rule, towards=before)
    new_state = TrainState(state.step + 1, actor, critic)
    return new_state, {**actor_metrics, **critic_metrics}


def learned(state: TrainState) -> Params:
    """What acting needs: the student."""
    return state.actor.params.student


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds flow Q-learning; raises ValueError for settings out of range."""
    del given
    parts, bind = build(config, spec), functools.partial
    h = config.chunk
    sample = bind(sampling.chunks, batch_size=config.batch_size, length=h)

    def plan(learned: Params, observation: Float[Array, " O"], key: PRNGKeyArray):
        noise = jax.random.normal(key, (1, h * spec.action_dim))
        return act_at_once(parts, learned, observation[None], noise)

    return Agent(
        init=bind(init, parts, spec),
        sample_batch=actors.off_bounds(sample, spec, config.action_limit),
        draw=bind(draw, parts, spec),
        update_step=bind(update_step, parts),
        learned=learned,
        acting=acts(plan, h),
    )
