"""Diffusion-QL (Wang, Hunt & Zhou, ICLR 2023, arXiv:2208.06193).

| paper | here |
|---|---|
| eq. 1, the reverse chain as policy pi(a | s) | `samplers.make_sampler` |
| eq. 2, L_d, the behaviour-cloning loss | `losses.denoising_loss` |
| eq. 3, L = L_d + L_q, with alpha = eta / E abs(Q) | `improvement.normalised_q_loss` |
| eq. 4, double Q-learning | `targets.critic_loss` |
| algorithm 1 | `update` |

The defaults are those of the authors' code, which differs from the paper's text: the
variance of the chain is the posterior's, x0_hat is clipped at every step, and acting
draws 50 candidates and picks one by softmax over the target critic's values.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents.base import Agent, action_bounds, no_carry
from jdql.data.sampling import transitions
from jdql.diffusion import constraints, losses, reverse, samplers, schedules
from jdql.networks.mlp import Critic, NoiseNetwork
from jdql.optim import adam, gradient_step, polyak, select
from jdql.rl.improvement import normalised_q_loss
from jdql.rl.resampling import choose
from jdql.rl.targets import clipped_double_q, critic_loss, max_q_backup, td_target
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors' (their main.py), for tasks without a row."""

    # policy improvement
    eta: float = 1.0  # weight of the Q term; table 3
    lr: float = 3e-4  # actor; table 3
    critic_lr: float = 3e-4  # the same for every task
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


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Params
    actor_ema: Params
    actor_opt: optax.OptState
    critic: Params
    critic_target: Params
    critic_opt: optax.OptState


class Policy(NamedTuple):
    """What acting needs: the online actor and the target critic."""

    actor: Params
    critic_target: Params


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
    """The networks and the policy.

    Attributes:
      actor: noise network.
      critic: the twin critic.
      full: the sampler of training, the ancestral chain over all K steps.
      acting: the sampler of acting.
      sample_action: `(actor params, observation [B, O], draws, sampler = full) ->
        action [B, A]`.
      actor_loss: `(actor params, critic params, batch, draws) -> (loss, (L_d, L_q))`.
    """

    actor: NoiseNetwork
    critic: Critic
    full: samplers.Sampler
    acting: samplers.Sampler
    sample_action: Callable[..., Array]
    actor_loss: Callable[..., tuple[Array, tuple[Array, Array]]]


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts that `make` puts together; raises ValueError for bad settings."""
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    make_sampler = functools.partial(
        samplers.make_sampler,
        schedule,
        variance=config.variance,
        constraint=constraints.clip_to(*action_bounds(spec)),
        unroll=config.unroll,
    )
    full = make_sampler("ancestral", remat=config.remat)
    acting = make_sampler(config.sampler, config.sample_steps)
    actor = NoiseNetwork(spec.action_dim, config.hidden, config.step_dim)

    def sample_action(params, observation, draws, sampler=full):
        def predict(x_k, k):
            return actor.apply(params, x_k, k, observation)

        return sampler.sample(predict, draws)

    critic = Critic(config.hidden)

    def actor_loss(params, critic_params, batch: Transition, draws: Draws):
        def predict(x_k, k):
            return actor.apply(params, x_k, k, batch.observation)

        bc_loss = losses.denoising_loss(
            schedule, predict, batch.action, draws.k, draws.noise
        )
        action = sample_action(params, batch.observation, draws.improvement)
        q = critic.apply(critic_params, batch.observation, action)
        q_loss = normalised_q_loss(q, draws.coin > 0.5)
        return bc_loss + config.eta * q_loss, (bc_loss, q_loss)

    return Parts(actor, critic, full, acting, sample_action, actor_loss)


def make(config: Config, spec: DataSpec) -> Agent:
    """Builds Diffusion-QL.

    Args:
      config: settings.
      spec: sizes and action bounds of the data.

    Returns:
      The agent.

    Raises:
      ValueError: for settings out of range.
    """
    O, A, B = spec.observation_dim, spec.action_dim, config.batch_size
    K, N = config.diffusion_steps, config.backup_actions if config.max_q_backup else 1
    parts = build(config, spec)
    actor, critic, full, acting = parts.actor, parts.critic, parts.full, parts.acting
    sample_action, actor_loss = parts.sample_action, parts.actor_loss
    actor_optimizer = adam(config.lr, config.grad_norm)
    critic_optimizer = adam(config.critic_lr, config.grad_norm)

    def next_value(state: TrainState, observation, draws):
        repeated = jnp.repeat(observation, N, axis=0)
        action = sample_action(state.actor_ema, repeated, draws)
        q = critic.apply(state.critic_target, repeated, action)
        return max_q_backup(q.reshape(2, -1, N)) if N > 1 else clipped_double_q(q)

    def critic_objective(params, state: TrainState, batch: Transition, draws: Draws):
        value = next_value(state, batch.next_observation, draws.target)
        target = td_target(batch.reward, batch.discount, value, config.discount)
        q = critic.apply(params, batch.observation, batch.action)
        return critic_loss(q, jax.lax.stop_gradient(target)), jnp.mean(q)

    def init(key: PRNGKeyArray) -> TrainState:
        actor_key, critic_key = jax.random.split(key)
        observation, action = jnp.zeros((1, O)), jnp.zeros((1, A))
        actor_params = actor.init(actor_key, action, jnp.zeros((), int), observation)
        critic_params = critic.init(critic_key, observation, action)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            actor=actor_params,
            actor_ema=actor_params,
            actor_opt=actor_optimizer.init(actor_params),
            critic=critic_params,
            critic_target=critic_params,
            critic_opt=critic_optimizer.init(critic_params),
        )

    def sample_batch(key, dataset) -> Transition:
        return transitions(key, dataset, B)

    def draw(key: PRNGKeyArray) -> Draws:
        target_key, k_key, noise_key, chain_key, coin_key = jax.random.split(key, 5)
        return Draws(
            target=reverse.draw_chain(target_key, full.draws, (B * N, A)),
            k=jax.random.randint(k_key, (B,), 0, K),
            noise=jax.random.normal(noise_key, (B, A)),
            improvement=reverse.draw_chain(chain_key, full.draws, (B, A)),
            coin=jax.random.uniform(coin_key),
        )

    def update_step(state: TrainState, batch: Transition, draws: Draws):
        (critic_value, q_mean), gradients = jax.value_and_grad(
            critic_objective, has_aux=True
        )(state.critic, state, batch, draws)
        critic_norm = optax.tree.norm(gradients)
        critic_params, critic_opt = gradient_step(
            critic_optimizer, state.critic, state.critic_opt, gradients
        )
        # The critic comes first: the policy is improved on the new one.
        (actor_value, (bc_loss, q_loss)), gradients = jax.value_and_grad(
            actor_loss, has_aux=True
        )(state.actor, critic_params, batch, draws)
        actor_norm = optax.tree.norm(gradients)
        actor_params, actor_opt = gradient_step(
            actor_optimizer, state.actor, state.actor_opt, gradients
        )
        # Never synchronised: before `ema_start` the targets act by the initial actor.
        averaging = (state.step % config.ema_every == 0) & (
            state.step >= config.ema_start
        )
        averaged = polyak(state.actor_ema, actor_params, 1 - config.ema_decay)
        new_state = TrainState(
            step=state.step + 1,
            actor=actor_params,
            actor_ema=select(averaging, averaged, state.actor_ema),
            actor_opt=actor_opt,
            critic=critic_params,
            critic_target=polyak(state.critic_target, critic_params, config.tau),
            critic_opt=critic_opt,
        )
        metrics = {
            "bc_loss": bc_loss,
            "q_loss": q_loss,
            "actor_loss": actor_value,
            "critic_loss": critic_value,
            "q_mean": q_mean,
            "actor_grad_norm": actor_norm,
            "critic_grad_norm": critic_norm,
        }
        return new_state, metrics

    def policy(state: TrainState) -> Policy:
        return Policy(state.actor, state.critic_target)

    def act(policy: Policy, carry, observation, key):
        chain_key, choice_key = jax.random.split(key)
        repeated = jnp.broadcast_to(observation, (config.candidates, O))
        draws = reverse.draw_chain(chain_key, acting.draws, (config.candidates, A))
        actions = sample_action(policy.actor, repeated, draws, acting)
        q = clipped_double_q(critic.apply(policy.critic_target, repeated, actions))
        return actions[choose(choice_key, q, config.temperature)], carry

    return Agent(init, sample_batch, draw, update_step, policy, no_carry, act)
