"""Diffusion actor-critic (Fang et al., ICLR 2025, arXiv:2405.20555).

The best policy within a divergence of the behaviour policy is the latter times
exp(Q / eta); its score is the behaviour's plus the gradient of Q / eta.  So the noise
network regresses on the noise of the data minus sigma_k times that gradient, at the
noisy action itself: no chain is differentiated.

| paper | here |
|---|---|
| eta E abs(eps - eps_hat)^2 + E sigma_k grad Q(a_k) . eps_hat | `guided` |
| dual ascent of eta, so that E abs(eps - eps_hat)^2 <= b | `dual_ascent` |
| targets: mean - rho std of the critics | `targets.lower_confidence_bound` |
| algorithm 1 | `update_step` |

The defaults are those of the authors' code: ten critics, targets that average ten
sampled actions, and the best of ten candidates when acting.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents.base import Agent, action_bounds, no_carry
from jdql.data.sampling import transitions
from jdql.diffusion import constraints, process, reverse, samplers, schedules
from jdql.networks.layers import XavierDense
from jdql.networks.mlp import Critic, NoiseNetwork
from jdql.optim import adamw, gradient_step, polyak, select
from jdql.rl.resampling import choose
from jdql.rl.targets import critic_loss, lower_confidence_bound, td_target
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
    grad_norm: float = 1.0  # both networks
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


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Params
    actor_ema: Params
    actor_opt: optax.OptState
    critic: Params
    critic_target: Params
    critic_opt: optax.OptState
    eta: Float[Array, ""]


class Policy(NamedTuple):
    """What acting needs: the online actor and the target critics."""

    actor: Params
    critic_target: Params


class Draws(NamedTuple):
    """The noise of one update.

    Attributes:
      target: chain of the next actions, over B times `backup_actions` rows.
      k: `[B]` diffusion steps of the actor's loss.
      noise: `[B, A]` its noise.
    """

    target: reverse.ChainDraws
    k: Int[Array, " B"]
    noise: Float[Array, "B A"]


def guided(
    eta: Float[Array, ""],
    noise: Float[Array, "B A"],
    predicted: Float[Array, "B A"],
    push: Float[Array, "B A"],
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    """eta mean (eps_hat - eps)^2 + mean(push eps_hat), both means over B and A.

    Its minimiser is eps_hat = E[eps] - push / (2 eta).

    Args:
      eta: weight of cloning.
      noise: in the noisy action.
      predicted: by the network.
      push: sigma_k grad Q(s, a_k), in units of mean abs(Q).

    Returns:
      The loss, and its two terms before eta.
    """
    bc_loss = jnp.mean(jnp.square(predicted - noise))
    guidance_loss = jnp.mean(push * predicted)
    return eta * bc_loss + guidance_loss, (bc_loss, guidance_loss)


def dual_ascent(
    eta: Float[Array, ""],
    rate: float | Float[Array, ""],
    excess: Float[Array, ""],
    bounds: tuple[Any, Any],
) -> Float[Array, ""]:
    """eta + rate clip(excess, -1, 1), within its bounds.

    Args:
      eta: the multiplier.
      rate: of the ascent.
      excess: of the cloning loss over what is allowed.
      bounds: the smallest and the largest eta.
    """
    return jnp.clip(eta + rate * jnp.clip(excess, -1, 1), *bounds)


class Parts(NamedTuple):
    """The networks and the samplers.

    Attributes:
      schedule: noise schedule.
      actor: noise network.
      critic: the ensemble.
      full: the sampler of the targets, the ancestral chain over all K steps.
      acting: the sampler of acting.
    """

    schedule: schedules.Schedule
    actor: NoiseNetwork
    critic: Critic
    full: samplers.Sampler
    acting: samplers.Sampler


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts that `make` puts together; raises ValueError for bad settings."""
    if config.critics < 1 or config.backup_actions < 1:
        raise ValueError(
            "critics and backup_actions must be at least 1, got "
            f"{config.critics} and {config.backup_actions}"
        )
    # The authors put beta_0 = 0 in front and let k run over 1..K: their step 0 is the
    # clean action, at which nothing is learned, and their step k is k - 1 here.
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    make_sampler = functools.partial(
        samplers.make_sampler,
        schedule,
        variance=config.variance,
        constraint=constraints.clip_to(*action_bounds(spec)),
        unroll=config.unroll,
    )
    full = make_sampler("ancestral")
    acting = make_sampler(config.sampler, config.sample_steps)
    # Deviation: the noise network is the one of Diffusion-QL: other first weights, and
    # features of the step of half the width.
    actor = NoiseNetwork(spec.action_dim, config.hidden, config.step_dim)
    critic = Critic(config.hidden, config.critics, dense=XavierDense)
    return Parts(schedule, actor, critic, full, acting)


def make(config: Config, spec: DataSpec) -> Agent:
    """Builds the diffusion actor-critic.

    Args:
      config: settings.
      spec: sizes and action bounds of the data.

    Returns:
      The agent.

    Raises:
      ValueError: for settings out of range.
    """
    O, A, B = spec.observation_dim, spec.action_dim, config.batch_size
    K, N = config.diffusion_steps, config.backup_actions
    schedule, actor, critic, full, acting = build(config, spec)
    over_actions = jnp.max if config.max_q_backup else jnp.mean

    actor_optimizer, critic_optimizer = (
        adamw(rate, config.decay_steps, grad_norm=config.grad_norm)
        for rate in (config.lr, config.critic_lr)
    )

    def sample_action(params, observation, draws, sampler):
        def predict(x_k, k):
            return actor.apply(params, x_k, k, observation)

        return sampler.sample(predict, draws)

    def next_value(state: TrainState, observation, draws):
        repeated = jnp.repeat(observation, N, axis=0)
        action = sample_action(state.actor_ema, repeated, draws, full)
        q = critic.apply(state.critic_target, repeated, action)
        q = over_actions(q.reshape(config.critics, -1, N), axis=-1)
        return lower_confidence_bound(q, config.rho)

    def critic_objective(params, target, batch: Transition):
        q = critic.apply(params, batch.observation, batch.action)
        # A mean over the critics, where Diffusion-QL has a sum: the bound of the
        # gradient norm tells them apart.
        loss = critic_loss(q, target) / config.critics
        return loss, (jnp.mean(q), jnp.mean(jnp.std(q, axis=0)))

    def q_gradient(params, batch: Transition, noisy):
        """Of the critics' mean at noisy actions, in units of mean |Q| of the data's."""
        q = critic.apply(params, batch.observation, batch.action)

        def total(action):
            return jnp.sum(
                jnp.mean(critic.apply(params, batch.observation, action), axis=0)
            )

        return jax.grad(total)(noisy) / (jnp.mean(jnp.abs(q)) + 1e-6)

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
            eta=jnp.asarray(config.eta, jnp.float32),
        )

    def sample_batch(key, dataset) -> Transition:
        return transitions(key, dataset, B)

    def draw(key: PRNGKeyArray) -> Draws:
        target_key, k_key, noise_key = jax.random.split(key, 3)
        return Draws(
            target=reverse.draw_chain(target_key, full.draws, (B * N, A)),
            k=jax.random.randint(k_key, (B,), 0, K),
            noise=jax.random.normal(noise_key, (B, A)),
        )

    def update_critic(state: TrainState, batch: Transition, draws: Draws):
        value = next_value(state, batch.next_observation, draws.target)
        target = td_target(batch.reward, batch.discount, value, config.discount)
        (loss, (q_mean, q_std)), gradients = jax.value_and_grad(
            critic_objective, has_aux=True
        )(state.critic, target, batch)
        params, opt = gradient_step(
            critic_optimizer, state.critic, state.critic_opt, gradients
        )
        state = state._replace(
            critic=params,
            critic_target=polyak(state.critic_target, params, config.tau),
            critic_opt=opt,
        )
        return state, {
            "critic_loss": loss,
            "q_mean": q_mean,
            "q_std": q_std,
            "critic_grad_norm": optax.tree.norm(gradients),
        }

    def update_actor(state: TrainState, batch: Transition, draws: Draws):
        noisy = process.forward_noise(schedule, batch.action, draws.k, draws.noise)
        gradient = q_gradient(state.critic_target, batch, noisy)
        push = process.at(schedule.noise, draws.k, noisy) * gradient

        def predict(params):
            return actor.apply(params, noisy, draws.k, batch.observation)

        def objective(params):
            return guided(state.eta, draws.noise, predict(params), push)

        (loss, (bc_loss, guidance_loss)), gradients = jax.value_and_grad(
            objective, has_aux=True
        )(state.actor)
        params, opt = gradient_step(
            actor_optimizer, state.actor, state.actor_opt, gradients
        )
        eta = state.eta
        if config.eta_lr is not None:  # by the loss of the new actor on the same noise
            new_loss = jnp.mean(jnp.square(predict(params) - draws.noise))
            excess = new_loss - config.bc_threshold
            bounds = config.eta_min, config.eta_max
            eta = dual_ascent(eta, config.eta_lr, excess, bounds)
        state = state._replace(actor=params, actor_opt=opt, eta=eta)
        return state, {
            "bc_loss": bc_loss,
            "guidance_loss": guidance_loss,
            "actor_loss": loss,
            "eta": eta,
            "actor_grad_norm": optax.tree.norm(gradients),
        }

    def update_step(state: TrainState, batch: Transition, draws: Draws):
        # The critics come first: the actor follows the new target critics.
        state, critic_metrics = update_critic(state, batch, draws)
        state, actor_metrics = update_actor(state, batch, draws)
        averaging = (state.step % config.ema_every == 0) & (
            state.step > config.ema_start
        )
        averaged = polyak(state.actor_ema, state.actor, 1 - config.ema_decay)
        actor_ema = select(averaging, averaged, state.actor_ema)
        state = state._replace(step=state.step + 1, actor_ema=actor_ema)
        return state, actor_metrics | critic_metrics

    def policy(state: TrainState) -> Policy:
        return Policy(state.actor, state.critic_target)

    def act(policy: Policy, carry, observation, key):
        chain_key, choice_key = jax.random.split(key)
        repeated = jnp.broadcast_to(observation, (config.candidates, O))
        draws = reverse.draw_chain(chain_key, acting.draws, (config.candidates, A))
        actions = sample_action(policy.actor, repeated, draws, acting)
        q = jnp.mean(critic.apply(policy.critic_target, repeated, actions), axis=0)
        return actions[choose(choice_key, q, config.temperature)], carry

    return Agent(init, sample_batch, draw, update_step, policy, no_carry, act)
