"""CFGRL: guidance as policy improvement (Frans, Park, Abbeel & Levine 2025).

"Diffusion guidance is a controllable policy improvement operator", arXiv:2505.23458.
One network clones the actions of the data twice over, as they are and given that their
advantage is positive (o = 1).  Guidance between the two draws from

    pi_w(a | s) ~ pi(a | s) p(o = 1 | s, a)^w,

a policy that improves with w, which is chosen when acting: `guidance`.

| paper | here |
|---|---|
| o = 1[A(s, a) >= 0], dropped one time in ten | `labels` |
| the conditional and the unconditional policy | `losses.denoising_loss` |
| score_u + w (score_c - score_u) | `guidance.classifier_free_stacked` |
| A = Q - V, the critics of IQL | `expectile.value_loss`, `targets.critic_loss` |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jdql.agents.base import Agent, action_bounds, no_carry
from jdql.data.sampling import transitions
from jdql.diffusion import constraints, guidance, losses, reverse, samplers, schedules
from jdql.networks.layers import XavierDense
from jdql.networks.mlp import (
    MLP,
    Critic,
    NoiseNetwork,
    gelu_critic,
    value_function,
)
from jdql.optim import adam, gradient_step, polyak
from jdql.rl import expectile
from jdql.rl.targets import clipped_double_q, critic_loss, td_target
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are those of the authors' agent with IQL's critics."""

    # Weight w: 0 clones, 1 is the conditional policy; the authors also play 0.5, 1.25,
    # 1.5, 2 and 3.  It has no part in training.
    guidance: float = 1.0
    threshold: float = 0.0  # advantage from which an action counts as good
    dropout: float = 0.1  # share of actions that are cloned without their label
    lr: float = 3e-4  # actor
    critic_lr: float = 3e-4  # critics and value
    expectile: float = 0.9
    batch_size: int = 1024
    discount: float = 0.99
    tau: float = 0.005  # target critic
    # diffusion
    # Deviation: a diffusion of 16 steps; the authors have a flow and 16 steps of Euler.
    diffusion_steps: int = 16
    schedule: str = "vp"
    variance: str = "posterior"
    unroll: int = 1  # steps of the chain laid out in a row
    # networks
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    step_dim: int = 16
    # acting
    sampler: str = "ancestral"
    sample_steps: int | None = None  # None: diffusion_steps


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Params
    actor_opt: optax.OptState
    critic: Params
    critic_target: Params
    value: Params
    critic_opt: optax.OptState  # of critic and value


class Draws(NamedTuple):
    """The noise of one update.

    Attributes:
      k: `[B]` diffusion steps.
      noise: `[B, A]` standard normal.
      coin: `[B]` uniform in [0, 1); below `dropout` the label is dropped.
    """

    k: Int[Array, " B"]
    noise: Float[Array, "B A"]
    coin: Float[Array, " B"]


DROPPED, BAD, GOOD = range(3)  # what the actor may be told of an action


def labels(
    advantage: Float[Array, " B"],
    threshold: float | Float[Array, ""],
    dropped: Array,
) -> Int[Array, " B"]:
    """GOOD where the advantage reaches the threshold, else BAD, or DROPPED."""
    label = jnp.where(advantage >= threshold, GOOD, BAD)
    return jnp.where(dropped, DROPPED, label)


def told(
    observation: Float[Array, "*B O"], label: Int[Array, "*B"]
) -> Float[Array, "*B C"]:
    """The observation with its label, one of three, as three numbers behind it.

    The rows of the first layer that they select are learned embeddings, that of the
    dropped label included.
    """
    return jnp.concatenate([observation, jax.nn.one_hot(label, 3)], axis=-1)


class Parts(NamedTuple):
    """The networks and the policy.

    Attributes:
      actor: noise network of observations that are `told`.
      critic: the twin critic.
      value: the network of V.
      sampler: how actions are drawn.
      cloning_loss: `(actor params, observation, action, label, draws) -> scalar`.
      sample_action: `(actor params, observation [B, O], chain draws) -> action [B, A]`.
    """

    actor: NoiseNetwork
    critic: Critic
    value: MLP
    sampler: samplers.Sampler
    cloning_loss: Callable[..., Float[Array, ""]]
    sample_action: Callable[[Params, Array, reverse.ChainDraws], Array]


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts that `make` puts together; raises ValueError for bad settings."""
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    sampler = samplers.make_sampler(
        schedule,
        config.sampler,
        config.sample_steps,
        variance=config.variance,
        constraint=constraints.clip_to(*action_bounds(spec)),
        unroll=config.unroll,
    )
    actor = NoiseNetwork(spec.action_dim, config.hidden, config.step_dim)
    value = MLP(config.hidden, 1, nn.gelu, XavierDense, norm=True)
    guide = guidance.classifier_free_stacked(config.guidance)

    def cloning_loss(params, observation, action, label, draws: Draws):
        def predict(x_k, k):
            return actor.apply(params, x_k, k, told(observation, label))

        return losses.denoising_loss(schedule, predict, action, draws.k, draws.noise)

    def sample_action(params, observation, draws):
        both = jnp.stack([observation, observation])
        label = jnp.array([[DROPPED], [GOOD]])
        inputs = told(both, jnp.broadcast_to(label, both.shape[:-1]))

        def predict(x_k, k):
            return actor.apply(params, x_k, k, inputs)

        return sampler.sample(predict, draws, guide)

    critic = gelu_critic(config.hidden)
    return Parts(actor, critic, value, sampler, cloning_loss, sample_action)


def make(config: Config, spec: DataSpec) -> Agent:
    """Builds CFGRL.

    Args:
      config: settings.
      spec: sizes and action bounds of the data.

    Returns:
      The agent.

    Raises:
      ValueError: for settings out of range.
    """
    O, A, B = spec.observation_dim, spec.action_dim, config.batch_size
    K = config.diffusion_steps
    actor, critic, value, sampler, cloning_loss, sample_action = build(config, spec)
    value_of = value_function(value)
    actor_optimizer, critic_optimizer = adam(config.lr), adam(config.critic_lr)

    def objective(params, state: TrainState, batch: Transition, draws: Draws):
        """All three losses: nothing that one learns from is another's parameter."""
        actor_params, critic_params, value_params = params
        target_q = critic.apply(state.critic_target, batch.observation, batch.action)
        v = value_of(value_params, batch.observation)
        value_loss = expectile.value_loss(target_q, v, config.expectile)

        next_v = value_of(state.value, batch.next_observation)
        target = td_target(batch.reward, batch.discount, next_v, config.discount)
        q = critic.apply(critic_params, batch.observation, batch.action)
        q_loss = critic_loss(q, target)

        advantage = jax.lax.stop_gradient(clipped_double_q(q) - v)
        label = labels(advantage, config.threshold, draws.coin < config.dropout)
        bc_loss = cloning_loss(
            actor_params, batch.observation, batch.action, label, draws
        )
        metrics = {
            "bc_loss": bc_loss,
            "critic_loss": q_loss,
            "value_loss": value_loss,
            "q_mean": jnp.mean(q),
            "advantage": jnp.mean(advantage),
            "good": jnp.mean(advantage >= config.threshold),
        }
        return bc_loss + q_loss + value_loss, metrics

    def init(key: PRNGKeyArray) -> TrainState:
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        observation, action = jnp.zeros((1, O)), jnp.zeros((1, A))
        inputs = told(observation, jnp.zeros(1, int))
        actor_params = actor.init(actor_key, action, jnp.zeros((), int), inputs)
        critic_params = critic.init(critic_key, observation, action)
        value_params = value.init(value_key, observation)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            actor=actor_params,
            actor_opt=actor_optimizer.init(actor_params),
            critic=critic_params,
            critic_target=critic_params,
            value=value_params,
            critic_opt=critic_optimizer.init((critic_params, value_params)),
        )

    def sample_batch(key, dataset) -> Transition:
        return transitions(key, dataset, B)

    def draw(key: PRNGKeyArray) -> Draws:
        k_key, noise_key, coin_key = jax.random.split(key, 3)
        return Draws(
            k=jax.random.randint(k_key, (B,), 0, K),
            noise=jax.random.normal(noise_key, (B, A)),
            coin=jax.random.uniform(coin_key, (B,)),
        )

    def update_step(state: TrainState, batch: Transition, draws: Draws):
        params = (state.actor, state.critic, state.value)
        gradients, metrics = jax.grad(objective, has_aux=True)(
            params, state, batch, draws
        )
        actor_params, actor_opt = gradient_step(
            actor_optimizer, state.actor, state.actor_opt, gradients[0]
        )
        (critic_params, value_params), critic_opt = gradient_step(
            critic_optimizer, params[1:], state.critic_opt, gradients[1:]
        )
        new_state = TrainState(
            step=state.step + 1,
            actor=actor_params,
            actor_opt=actor_opt,
            critic=critic_params,
            # As the authors do it: towards the critic of before this update.
            critic_target=polyak(state.critic_target, state.critic, config.tau),
            value=value_params,
            critic_opt=critic_opt,
        )
        return new_state, metrics

    def policy(state: TrainState) -> Params:
        return state.actor

    def act(policy: Params, carry, observation, key):
        draws = reverse.draw_chain(key, sampler.draws, (1, A))
        return sample_action(policy, observation[None], draws)[0], carry

    return Agent(init, sample_batch, draw, update_step, policy, no_carry, act)
