"""IDQL, implicit Q-learning as an actor-critic method (arXiv:2304.10573).

Hansen-Estruch, Kostrikov, Janner, Kuba & Levine 2023.  The policy clones the behaviour
and never sees a value; the critics never see the policy.  They meet when acting.

| paper | here |
|---|---|
| IQL's expectile loss of V | `expectile.value_loss` |
| IQL's target of Q, r + gamma V(s') | `targets.td_target`, `targets.critic_loss` |
| the behaviour policy's denoising loss | `losses.denoising_loss` |
| the implicit policy, importance weights of its samples | `expectile.implicit` |
| the greedy policy of the experiments | `expectile.best` |
| LN-ResNet | `resnet.ResidualNoiseNetwork` |

The defaults are those of the authors' code: noise of variance beta_k, each x_k (not
x0_hat) clipped, the loss summed over action dimensions, and a slow average of the actor
that acts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jdql.agents.base import Agent, action_bounds, no_carry
from jdql.data.sampling import transitions
from jdql.diffusion import constraints, losses, reverse, samplers, schedules
from jdql.networks.layers import XavierDense
from jdql.networks.mlp import MLP, Critic, value_function
from jdql.networks.resnet import ResidualNoiseNetwork, draw_dropout
from jdql.optim import adam, adamw, descend, polyak
from jdql.rl import expectile
from jdql.rl.targets import clipped_double_q, critic_loss, td_target
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors' for locomotion."""

    lr: float = 3e-4  # actor, at first; falls as half a cosine
    decay_steps: int = 3_000_000  # until it is 0
    weight_decay: float = 0.0  # of the actor; the authors' later script has 1e-4
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


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Params
    actor_target: Params
    actor_opt: optax.OptState
    critic: Params
    critic_target: Params
    critic_opt: optax.OptState
    value: Params
    value_opt: optax.OptState


class Policy(NamedTuple):
    """What acting needs: averaged actor, target critic, and the value of states."""

    actor: Params
    critic: Params
    value: Params


class Draws(NamedTuple):
    """The noise of one update.

    Attributes:
      k: `[B]` diffusion steps.
      noise: `[B, A]` standard normal.
      dropout: `[blocks, B, width]` masks, already divided by the share that is kept.
    """

    k: Int[Array, " B"]
    noise: Float[Array, "B A"]
    dropout: Float[Array, "blocks B F"]


def summed_squares(error: Float[Array, "B A"]) -> Float[Array, " B"]:
    """Squared error summed over action dimensions, as the authors weigh it."""
    return jnp.sum(jnp.square(error), axis=-1)


def build_sampler(
    config: Config, spec: DataSpec, schedule: schedules.Schedule
) -> samplers.Sampler:
    """How candidates are drawn; raises ValueError for bad settings."""
    to_bounds = constraints.clip_to(*action_bounds(spec))
    # The authors clip each x_k of their ancestral chain and leave x0_hat as it is.
    ancestral = config.sampler == "ancestral"
    clipping: dict[str, Any] = {
        "step_constraint" if ancestral else "constraint": to_bounds
    }
    return samplers.make_sampler(
        schedule,
        config.sampler,
        config.sample_steps,
        variance=config.variance,
        unroll=config.unroll,
        **clipping,
    )


def make(config: Config, spec: DataSpec) -> Agent:
    """Builds IDQL.

    Args:
      config: settings.
      spec: sizes and action bounds of the data.

    Returns:
      The agent.

    Raises:
      ValueError: for settings out of range.
    """
    O, A, B = spec.observation_dim, spec.action_dim, config.batch_size
    K, N = config.diffusion_steps, config.candidates
    schedule = schedules.make_schedule(config.schedule, K)
    sampler = build_sampler(config, spec, schedule)
    select = expectile.selection(config.selection)
    actor = ResidualNoiseNetwork(A, config.width, config.blocks, config.step_dim)
    critic = Critic(config.hidden, 2, nn.relu, XavierDense)
    value = MLP(config.hidden, 1, nn.relu, XavierDense)
    value_of = value_function(value)
    actor_optimizer = adamw(config.lr, config.decay_steps, config.weight_decay)
    optimizer = adam(config.critic_lr)

    def actor_objective(params: Params, batch: Transition, draws: Draws):
        def predict(x_k, k):
            return actor.apply(params, x_k, k, batch.observation, draws.dropout)

        return losses.denoising_loss(
            schedule, predict, batch.action, draws.k, draws.noise, error=summed_squares
        )

    def value_objective(params: Params, target_q: Array, batch: Transition):
        v = value_of(params, batch.observation)
        return expectile.value_loss(target_q, v, config.expectile)

    def critic_objective(params: Params, next_value: Array, batch: Transition):
        target = td_target(batch.reward, batch.discount, next_value, config.discount)
        q = critic.apply(params, batch.observation, batch.action)
        return critic_loss(q, target) / len(q)  # the authors take the mean of the two

    def init(key: PRNGKeyArray) -> TrainState:
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        observation, action = jnp.zeros((1, O)), jnp.zeros((1, A))
        actor_params = actor.init(actor_key, action, jnp.zeros((), int), observation)
        critic_params = critic.init(critic_key, observation, action)
        value_params = value.init(value_key, observation)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            actor=actor_params,
            actor_target=actor_params,
            actor_opt=actor_optimizer.init(actor_params),
            critic=critic_params,
            critic_target=critic_params,
            critic_opt=optimizer.init(critic_params),
            value=value_params,
            value_opt=optimizer.init(value_params),
        )

    def sample_batch(key, dataset) -> Transition:
        return transitions(key, dataset, B)

    def draw(key: PRNGKeyArray) -> Draws:
        k_key, noise_key, dropout_key = jax.random.split(key, 3)
        masks = (config.blocks, B, config.width)
        return Draws(
            k=jax.random.randint(k_key, (B,), 0, K),
            noise=jax.random.normal(noise_key, (B, A)),
            dropout=draw_dropout(dropout_key, config.dropout, masks),
        )

    def update_step(state: TrainState, batch: Transition, draws: Draws):
        actor_params, actor_opt, bc_loss = descend(
            actor_optimizer,
            state.actor,
            state.actor_opt,
            lambda params: actor_objective(params, batch, draws),
        )
        target_q = critic.apply(state.critic_target, batch.observation, batch.action)
        value_params, value_opt, value_loss = descend(
            optimizer,
            state.value,
            state.value_opt,
            lambda params: value_objective(params, target_q, batch),
        )
        # The value comes first: the critics regress to the new one.
        next_value = value_of(value_params, batch.next_observation)
        critic_params, critic_opt, q_loss = descend(
            optimizer,
            state.critic,
            state.critic_opt,
            lambda params: critic_objective(params, next_value, batch),
        )
        new_state = TrainState(
            step=state.step + 1,
            actor=actor_params,
            actor_target=polyak(state.actor_target, actor_params, config.actor_tau),
            actor_opt=actor_opt,
            critic=critic_params,
            critic_target=polyak(state.critic_target, critic_params, config.tau),
            critic_opt=critic_opt,
            value=value_params,
            value_opt=value_opt,
        )
        metrics = {
            "bc_loss": bc_loss,
            "value_loss": value_loss,
            "critic_loss": q_loss,
            "q_mean": jnp.mean(target_q),
            "v_mean": jnp.mean(next_value),
        }
        return new_state, metrics

    def policy(state: TrainState) -> Policy:
        return Policy(state.actor_target, state.critic_target, state.value)

    def act(policy: Policy, carry, observation, key):
        chain_key, choice_key = jax.random.split(key)
        repeated = jnp.broadcast_to(observation, (N, O))

        def predict(x_k, k):
            return actor.apply(policy.actor, x_k, k, repeated)

        draws = reverse.draw_chain(chain_key, sampler.draws, (N, A))
        actions = sampler.sample(predict, draws)
        q = clipped_double_q(critic.apply(policy.critic, repeated, actions))
        v = value_of(policy.value, observation)
        return actions[select(choice_key, q, v, config.expectile)], carry

    return Agent(init, sample_batch, draw, update_step, policy, no_carry, act)
