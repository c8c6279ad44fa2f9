"""IFQL, implicit flow Q-learning: IDQL with a flow in the place of diffusion.

The baseline of Park, Li & Levine 2025 (arXiv:2502.02538), after Hansen-Estruch et al.
2023.  A flow clones the behaviour, implicit Q-learning learns the critics, and acting
takes the best of several samples.

| paper | here |
|---|---|
| flow matching of the behaviour (Park et al., eq. 1) | `flow.flow_loss` |
| Euler's method | `flow.euler` |
| expectile loss of V (Kostrikov et al. 2022, eq. 5) | `expectile.value_loss` |
| target of Q (eq. 6 there) | `targets.td_target`, `targets.critic_loss` |
| the best of N samples | `expectile.best` |

As in the authors' code, one step of all networks starts from the same parameters: Q
regresses to the V before the step, and the online critics choose.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jdql.agents.base import Agent, action_bounds, no_carry
from jdql.data.sampling import transitions
from jdql.diffusion import constraints, flow
from jdql.networks.layers import XavierDense
from jdql.networks.mlp import MLP, VelocityNetwork, gelu_critic, value_function
from jdql.optim import adam, descend, polyak
from jdql.rl import expectile
from jdql.rl.targets import clipped_double_q, critic_loss, td_target
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are those of the authors' code."""

    lr: float = 3e-4  # actor
    critic_lr: float = 3e-4  # critics and value
    expectile: float = 0.9
    batch_size: int = 256
    discount: float = 0.99
    tau: float = 0.005  # target critic
    # flow
    flow_steps: int = 10
    unroll: int = 1  # steps of the flow laid out in a row
    # networks: actor, critics and value, the last two with layer normalisation
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    # acting
    candidates: int = 32
    selection: str = "best"  # or "implicit", the policy whose value V is


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Params
    actor_opt: optax.OptState
    critic: Params
    critic_target: Params
    critic_opt: optax.OptState
    value: Params
    value_opt: optax.OptState


class Policy(NamedTuple):
    """What acting needs: actor, online critic, and the value of states."""

    actor: Params
    critic: Params
    value: Params


class Draws(NamedTuple):
    """The noise of one update: times of the flow `[B]`, standard normals `[B, A]`."""

    time: Float[Array, " B"]
    noise: Float[Array, "B A"]


def make(config: Config, spec: DataSpec) -> Agent:
    """Builds IFQL.

    Args:
      config: settings.
      spec: sizes and action bounds of the data.

    Returns:
      The agent.

    Raises:
      ValueError: for settings out of range.
    """
    O, A, B = spec.observation_dim, spec.action_dim, config.batch_size
    N, steps = config.candidates, flow.check_steps(config.flow_steps)
    to_bounds = constraints.clip_to(*action_bounds(spec))
    select = expectile.selection(config.selection)
    actor = VelocityNetwork(A, config.hidden)
    critic = gelu_critic(config.hidden)
    value = MLP(config.hidden, 1, nn.gelu, XavierDense, norm=True)
    value_of = value_function(value)
    actor_optimizer, optimizer = adam(config.lr), adam(config.critic_lr)

    def actor_objective(params: Params, batch: Transition, draws: Draws):
        def velocity(x_t, time):
            return actor.apply(params, x_t, time, batch.observation)

        return flow.flow_loss(velocity, batch.action, draws.time, draws.noise)

    def value_objective(params: Params, target_q: Array, batch: Transition):
        v = value_of(params, batch.observation)
        return expectile.value_loss(target_q, v, config.expectile)

    def critic_objective(params: Params, next_value: Array, batch: Transition):
        target = td_target(batch.reward, batch.discount, next_value, config.discount)
        q = critic.apply(params, batch.observation, batch.action)
        return critic_loss(q, target)

    def init(key: PRNGKeyArray) -> TrainState:
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        observation, action = jnp.zeros((1, O)), jnp.zeros((1, A))
        actor_params = actor.init(actor_key, action, jnp.zeros(()), observation)
        critic_params = critic.init(critic_key, observation, action)
        value_params = value.init(value_key, observation)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            actor=actor_params,
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
        time_key, noise_key = jax.random.split(key)
        return Draws(
            time=jax.random.uniform(time_key, (B,)),
            noise=jax.random.normal(noise_key, (B, A)),
        )

    def update_step(state: TrainState, batch: Transition, draws: Draws):
        target_q = critic.apply(state.critic_target, batch.observation, batch.action)
        next_value = value_of(state.value, batch.next_observation)
        actor_params, actor_opt, bc_loss = descend(
            actor_optimizer,
            state.actor,
            state.actor_opt,
            lambda params: actor_objective(params, batch, draws),
        )
        value_params, value_opt, value_loss = descend(
            optimizer,
            state.value,
            state.value_opt,
            lambda params: value_objective(params, target_q, batch),
        )
        critic_params, critic_opt, q_loss = descend(
            optimizer,
            state.critic,
            state.critic_opt,
            lambda params: critic_objective(params, next_value, batch),
        )
        new_state = TrainState(
            step=state.step + 1,
            actor=actor_params,
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
        return Policy(state.actor, state.critic, state.value)

    def act(policy: Policy, carry, observation, key):
        noise_key, choice_key = jax.random.split(key)
        repeated = jnp.broadcast_to(observation, (N, O))

        def velocity(x_t, time):
            return actor.apply(policy.actor, x_t, time, repeated)

        noise = jax.random.normal(noise_key, (N, A))
        actions = to_bounds(flow.euler(velocity, noise, steps, unroll=config.unroll))
        q = clipped_double_q(critic.apply(policy.critic, repeated, actions))
        v = value_of(policy.value, observation)
        return actions[select(choice_key, q, v, config.expectile)], carry

    return Agent(init, sample_batch, draw, update_step, policy, no_carry, act)
