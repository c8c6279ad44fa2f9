"""Flow Q-learning (Park, Li & Levine, ICML 2025, arXiv:2502.02538).

A flow clones the behaviour; a student imitates it in one step and raises Q; the flow
never sees a value, and no gradient goes through its integration.

| paper | here |
|---|---|
| L_Flow, behaviour cloning by flow matching | `flow.flow_loss` |
| mu_theta(s, z), the flow integrated by Euler's method | `flow.euler` |
| L_Distill, alpha E (mu_omega(s, z) - mu_theta(s, z))^2 | `actor_objective` |
| L_Q, the critics' loss | `chunks.chunk_critic_loss` of `chunks.chunk_target` |
| chunks of h actions (QC-FQL; Li, Zhou & Levine 2025) | `chunks`, `sampling.chunks` |

With `chunk` = h > 1 an action is a chunk of h, flattened, and the target a return of h
steps.  A chunk may begin anywhere; where it goes beyond the end of its episode, the
cloning loss counts the steps before the end only, and the critic does not learn from it
(with `cut_chunks` it does where the end is a true one).  Acting carries out a chunk
without looking, then plans anew.

The defaults are those of the authors' code: targets take the mean of the critics, not
the smallest, and all parameters move at once, each by the gradient at the old ones.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents.base import Agent, action_bounds
from jdql.data import sampling
from jdql.diffusion import constraints, flow, losses
from jdql.networks.mlp import OneStepActor, VelocityNetwork, gelu_critic
from jdql.optim import adam, gradient_step, polyak
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


class Actor(NamedTuple):
    """The teacher, a flow that clones the behaviour, and its one-step student."""

    flow: Params
    student: Params


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Actor
    actor_opt: optax.OptState
    critic: Params
    critic_target: Params
    critic_opt: optax.OptState


class Draws(NamedTuple):
    """The noise of one update; D = h A numbers make a chunk.

    Attributes:
      next_noise: `[B, D]` of the next actions.
      time: `[B]` uniform times of the cloning loss.
      noise: `[B, D]` its noise.
      student_noise: `[B, D]`, from which teacher and student act.
    """

    next_noise: Float[Array, "B D"]
    time: Float[Array, " B"]
    noise: Float[Array, "B D"]
    student_noise: Float[Array, "B D"]


def q_loss(q: Float[Array, " B"]) -> Float[Array, ""]:
    """-mean(Q)."""
    return -jnp.mean(q)


def make(config: Config, spec: DataSpec) -> Agent:
    """Builds flow Q-learning.

    Args:
      config: settings.
      spec: sizes and action bounds of the data.

    Returns:
      The agent.

    Raises:
      ValueError: for settings out of range.
    """
    O, B, h = spec.observation_dim, config.batch_size, config.chunk
    D, steps = h * spec.action_dim, flow.check_steps(config.flow_steps)
    aggregate = ensembles.aggregate(config.q_agg)
    raise_q = self_normalised_q_loss if config.normalize_q_loss else q_loss
    low, high = action_bounds(spec)
    to_bounds = constraints.clip_to(jnp.tile(low, h), jnp.tile(high, h))
    teacher, student = VelocityNetwork(D, config.hidden), OneStepActor(D, config.hidden)
    critic = gelu_critic(config.hidden)
    actor_optimizer, critic_optimizer = adam(config.lr), adam(config.critic_lr)

    def teach(params: Params, observation, noise):
        def velocity(x_t, time):
            return teacher.apply(params, x_t, time, observation)

        return to_bounds(flow.euler(velocity, noise, steps, unroll=config.unroll))

    def critic_objective(params: Params, state: TrainState, batch: Chunk, draws: Draws):
        seen = batch.next_observation
        action = student.apply(state.actor.student, draws.next_noise, seen)
        q = critic.apply(state.critic_target, seen, to_bounds(action))
        target = chunks.chunk_target(batch, aggregate(q), config.discount)
        q = critic.apply(params, batch.observation, chunks.flat_action(batch))
        weight = chunks.critic_weight(batch, config.cut_chunks)
        return chunks.chunk_critic_loss(q, target, weight), (jnp.mean(q), weight)

    def actor_objective(actor: Actor, state: TrainState, batch: Chunk, draws: Draws):
        seen, mask = batch.observation, chunks.action_mask(batch)
        bc_loss = flow.flow_loss(
            lambda x_t, time: teacher.apply(actor.flow, x_t, time, seen),
            chunks.flat_action(batch),
            draws.time,
            draws.noise,
            error=lambda error: losses.squared_error(mask * error),
        )
        taught = teach(jax.lax.stop_gradient(actor.flow), seen, draws.student_noise)
        action = student.apply(actor.student, draws.student_noise, seen)
        distill_loss = jnp.mean(jnp.square(action - taught))
        q = critic.apply(state.critic, seen, to_bounds(action))
        value_loss = raise_q(jnp.mean(q, axis=0))
        total = bc_loss + config.alpha * distill_loss + value_loss
        return total, (bc_loss, distill_loss, value_loss)

    def init(key: PRNGKeyArray) -> TrainState:
        flow_key, student_key, critic_key = jax.random.split(key, 3)
        observation, action = jnp.zeros((1, O)), jnp.zeros((1, D))
        actor = Actor(
            flow=teacher.init(flow_key, action, jnp.zeros(()), observation),
            student=student.init(student_key, action, observation),
        )
        critic_params = critic.init(critic_key, observation, action)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            actor=actor,
            actor_opt=actor_optimizer.init(actor),
            critic=critic_params,
            critic_target=critic_params,
            critic_opt=critic_optimizer.init(critic_params),
        )

    def sample_batch(key, dataset) -> Chunk:
        return sampling.chunks(key, dataset, B, h)

    def draw(key: PRNGKeyArray) -> Draws:
        noise_key, time_key = jax.random.split(key)
        next_noise, noise, student_noise = jax.random.normal(noise_key, (3, B, D))
        time = jax.random.uniform(time_key, (B,))
        return Draws(next_noise, time, noise, student_noise)

    def update_step(state: TrainState, batch: Chunk, draws: Draws):
        (critic_value, (q_mean, weight)), critic_gradients = jax.value_and_grad(
            critic_objective, has_aux=True
        )(state.critic, state, batch, draws)
        (actor_value, (bc_loss, distill_loss, value_loss)), actor_gradients = (
            jax.value_and_grad(actor_objective, has_aux=True)
        )(state.actor, state, batch, draws)
        critic_params, critic_opt = gradient_step(
            critic_optimizer, state.critic, state.critic_opt, critic_gradients
        )
        actor, actor_opt = gradient_step(
            actor_optimizer, state.actor, state.actor_opt, actor_gradients
        )
        new_state = TrainState(
            step=state.step + 1,
            actor=actor,
            actor_opt=actor_opt,
            critic=critic_params,
            critic_target=polyak(state.critic_target, critic_params, config.tau),
            critic_opt=critic_opt,
        )
        metrics = {
            "bc_loss": bc_loss,
            "distill_loss": distill_loss,
            "q_loss": value_loss,
            "actor_loss": actor_value,
            "critic_loss": critic_value,
            "q_mean": q_mean,
            "chunks_used": jnp.mean(weight),
            "actor_grad_norm": optax.tree.norm(actor_gradients),
            "critic_grad_norm": optax.tree.norm(critic_gradients),
        }
        return new_state, metrics

    def policy(state: TrainState) -> Params:
        return state.actor.student

    def plan(params: Params, observation, key):
        noise = jax.random.normal(key, (1, D))
        return to_bounds(student.apply(params, noise, observation[None]))[0]

    reset, act = chunks.open_loop(plan, h, spec.action_dim)
    return Agent(init, sample_batch, draw, update_step, policy, reset, act)
