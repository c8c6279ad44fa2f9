"""EDP, efficient diffusion policies (Kang et al., NeurIPS 2023, arXiv:2305.20081).

| paper | here |
|---|---|
| L_d and the action approximation | `approximation.approximate` |
| TD3: L = L_d - eta E Q / E abs(Q) | `improvement.self_normalised_q_loss` |
| CRR and IQL: L = L_d - E w log pi(a | s) | `improvement.weighted_likelihood_loss` |
| the weights w | `weights.crr_weight`, `weights.awr_weight` |
| the likelihood of a chain, by its approximation or its bound | `approximation` |
| Q of TD3 and CRR: double Q-learning | `targets.critic_loss` |
| V and Q of IQL | `expectile.value_loss`, `targets.critic_loss` |
| energy-based action selection | `resampling.choose` |

Diffusion-QL improves its policy through the whole chain.  EDP takes the estimate of the
clean action that the noise network gives anyway when it is trained, so that one call of
the network serves cloning and improvement, however many diffusion steps there are.

The price is bias: at high noise the estimate is the mean of the actions that the noisy
one may come from.  With data at +-1 and a perfect network, two thirds of the estimates
lie within +-0.5 (with vp and 100 steps, half), where there are no data, and the critic
is asked there.  `k_max` keeps improvement to the diffusion steps below it.

The defaults are the authors' for their DPM-Solver: 1000 diffusion steps, and 15 network
calls for an action, in targets and in the environment.  Their program without that flag
has 100 steps and the full chain: diffusion_steps 100, sampler ancestral, sample_steps
None (`--config=edp:ancestral`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents.base import Agent, Metrics, action_bounds, no_carry
from jdql.data.sampling import transitions
from jdql.diffusion import approximation, constraints, reverse, samplers, schedules
from jdql.networks.mlp import MLP, Critic, NoiseNetwork, value_function
from jdql.optim import adam, gradient_step, polyak, select
from jdql.rl import improvement, weights
from jdql.rl.expectile import value_loss
from jdql.rl.resampling import choose
from jdql.rl.targets import clipped_double_q, critic_loss, max_q_backup, td_target
from jdql.types import (
    Array,
    DataSpec,
    Float,
    Int,
    Params,
    PRNGKeyArray,
    Transition,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are those of the authors' code for their DPM-Solver."""

    # policy improvement: loss = bc_weight L_d + guide_weight L_rule
    rule: str = "td3"  # or crr, iql
    bc_weight: float = 1.0
    guide_weight: float = 1.0
    eta: float = 2.0  # td3: weight of the Q term, "alpha" there
    likelihood: str = "fixed_std"  # crr and iql; or elbo
    crr_temperature: float = 1.0
    crr_max_weight: float = 20.0
    crr_actions: int = 10  # of the policy, for the baseline
    inverse_temperature: float = 3.0  # iql
    max_weight: float = 100.0  # iql
    expectile: float = 0.7  # iql
    # None: the estimate of every diffusion step improves the policy; a number: of those
    # below it only.  Cloning always takes all.
    k_max: int | None = None
    lr: float = 3e-4  # actor
    critic_lr: float = 3e-4  # critics and V
    grad_norm: float | None = 5.0  # each network for itself; None: no clipping
    max_q_backup: bool = False  # td3 and crr: best of `backup_actions` actions
    backup_actions: int = 10
    batch_size: int = 256
    action_limit: float = 0.999  # of the data's actions, as a share of the bounds
    discount: float = 0.99
    tau: float = 0.005  # target critics, every update
    # averaged actor, which acts in the targets of td3 and crr
    ema_decay: float = 0.995
    ema_every: int = 5
    ema_start: int = 1000
    # diffusion
    diffusion_steps: int = 1000
    schedule: str = "scaled_linear"  # theirs; or vp, cosine, linear
    # Deviation: the authors' DPM-Solver is of order 3, singlestep, even in k down to a
    # time of 0.001; this one is of order 2, multistep, even in log(signal / noise).
    sampler: str = "dpmpp_2m"
    sample_steps: int | None = 15
    variance: str = "posterior"  # of the ancestral sampler
    unroll: int = 1  # steps of the chain laid out in a row
    # networks
    # Deviation: PyTorch's initialisation and Diffusion-QL's frequencies of the step
    # features, as in every agent here; the authors have Flax's and guided diffusion's.
    hidden: tuple[int, ...] = (256, 256, 256)
    step_dim: int = 16
    # acting
    candidates: int = 50
    temperature: float = 1.0  # of the softmax over Q; 0 takes the best candidate


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime.

    `value` and its optimiser belong to IQL and are empty otherwise.
    """

    step: Int[Array, ""]
    actor: Params
    actor_ema: Params
    actor_opt: optax.OptState
    critic: Params
    critic_target: Params
    critic_opt: optax.OptState
    value: Params
    value_opt: optax.OptState


class Policy(NamedTuple):
    """What acting needs: the online actor and the online critic."""

    actor: Params
    critic: Params


class Draws(NamedTuple):
    """The noise of one update.

    Attributes:
      target: chain of the next actions, over B (with max-Q backup, over 10 B) rows; no
        rows for IQL, which samples none.
      k: `[B]` diffusion steps of the actor's loss.
      noise: `[B, A]` its noise.
      coin: uniform in [0, 1); td3 raises Q_1 above one half, else Q_2.
      around: `[N, B, A]` noise of the actions of CRR's baseline; N is 0 otherwise.
    """

    target: reverse.ChainDraws
    k: Int[Array, " B"]
    noise: Float[Array, "B A"]
    coin: Float[Array, ""]
    around: Float[Array, "N B A"]


# The loss of an improvement rule: (state, batch, a0_hat [B, A], log pi [B], draws) ->
# scalar.  The state's critics are those before the update, its V the one after.
Rule = Callable[[TrainState, Transition, Array, Array, Draws], Array]


class Parts(NamedTuple):
    """The networks, the policy and its loss.

    Attributes:
      actor: noise network.
      critic: the twin critic.
      value: the network of V.
      value_of: `(params of V, observation [B, O]) -> [B]`.
      sampler: of targets and of acting.
      sample_action: `(actor params, observation [B, O], draws) -> action [B, A]`.
      actor_loss: `(actor params, state, batch, draws) -> (loss, (cloning, rule))`.
    """

    actor: NoiseNetwork
    critic: Critic
    value: MLP
    value_of: Callable[[Params, Array], Array]
    sampler: samplers.Sampler
    sample_action: Callable[[Params, Array, reverse.ChainDraws], Array]
    actor_loss: Callable[..., tuple[Array, tuple[Array, Array]]]


def improvement_rule(config: Config, critic: Critic, value_of: Callable) -> Rule:
    """The rule called `config.rule`; raises ValueError where there is none."""
    one_head = Critic(config.hidden, members=1)

    def data_q(params, batch):
        return clipped_double_q(critic.apply(params, batch.observation, batch.action))

    def td3(state, batch, action, score, draws):
        head = jnp.where(draws.coin > 0.5, 0, 1)
        params = jax.tree.map(lambda leaf: leaf[head][None], state.critic)
        q = one_head.apply(params, batch.observation, action)[0]
        share = shares(config, draws.k)
        return config.eta * improvement.self_normalised_q_loss(q, share)

    def crr(state, batch, action, score, draws):
        actions = jax.lax.stop_gradient(action) + draws.around
        shape = (*actions.shape[:-1], batch.observation.shape[-1])
        observation = jnp.broadcast_to(batch.observation, shape)
        sampled = jnp.min(critic.apply(state.critic, observation, actions), axis=0)
        q, beta = data_q(state.critic, batch), config.crr_temperature
        weight = weights.crr_weight(q, sampled, beta, config.crr_max_weight)
        return improvement.weighted_likelihood_loss(score, weight)

    def iql(state, batch, action, score, draws):
        q = data_q(state.critic_target, batch)
        v = value_of(state.value, batch.observation)
        weight = weights.awr_weight(q, v, config.inverse_temperature, config.max_weight)
        return improvement.weighted_likelihood_loss(score, weight)

    rules: dict[str, Rule] = {"td3": td3, "crr": crr, "iql": iql}
    if config.rule not in rules:
        raise ValueError(f"rule must be one of {sorted(rules)}, got {config.rule!r}")
    return rules[config.rule]


def shares(config: Config, k: Int[Array, " B"]) -> float | Float[Array, " B"]:
    """Weight of each sample in the improvement: of mean 1, and 0 from `k_max` on."""
    K, k_max = config.diffusion_steps, config.k_max
    return 1.0 if k_max is None else jnp.where(k < k_max, K / k_max, 0.0)


def check(config: Config) -> None:
    """Raises ValueError for a setting out of range."""
    K, k_max = config.diffusion_steps, config.k_max
    if k_max is not None and not 1 <= k_max <= K:
        raise ValueError(f"k_max must be within 1..diffusion_steps ({K}), got {k_max}")
    if config.rule == "crr" and config.crr_actions < 1:
        raise ValueError(f"crr_actions must be at least 1, got {config.crr_actions}")


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts that `make` puts together; raises ValueError for bad settings."""
    check(config)
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    to_bounds = constraints.clip_to(*action_bounds(spec))
    sampler = samplers.make_sampler(
        schedule,
        config.sampler,
        config.sample_steps,
        variance=config.variance,
        constraint=to_bounds,
        unroll=config.unroll,
    )
    actor = NoiseNetwork(spec.action_dim, config.hidden, config.step_dim)
    critic, value = Critic(config.hidden), MLP(config.hidden, 1)
    value_of = value_function(value)
    likelihood = approximation.likelihood(config.likelihood)

    def sample_action(params, observation, draws):
        return sampler.sample(
            lambda x_k, k: actor.apply(params, x_k, k, observation), draws
        )

    rule = improvement_rule(config, critic, value_of)

    def actor_loss(params, state: TrainState, batch: Transition, draws: Draws):
        estimate, error = approximation.approximate(
            schedule,
            lambda x_k, k: actor.apply(params, x_k, k, batch.observation),
            batch.action,
            draws.k,
            draws.noise,
            to_bounds,
        )
        score = likelihood(schedule, batch.action, estimate, error, draws.k)
        score = shares(config, draws.k) * score
        guide_loss = rule(state, batch, estimate, score, draws)
        bc_loss = jnp.mean(error)
        loss = config.bc_weight * bc_loss + config.guide_weight * guide_loss
        return loss, (bc_loss, guide_loss)

    return Parts(actor, critic, value, value_of, sampler, sample_action, actor_loss)


def make(config: Config, spec: DataSpec) -> Agent:
    """Builds EDP.

    Args:
      config: settings.
      spec: sizes and action bounds of the data.

    Returns:
      The agent.

    Raises:
      ValueError: for settings out of range.
    """
    O, A, B = spec.observation_dim, spec.action_dim, config.batch_size
    N = config.backup_actions if config.max_q_backup else 1
    parts = build(config, spec)
    actor, critic, learns_value = parts.actor, parts.critic, config.rule == "iql"
    chain_rows = 0 if learns_value else B * N
    around = config.crr_actions if config.rule == "crr" else 0
    low, high = action_bounds(spec)
    middle, reach = (high + low) / 2, config.action_limit * (high - low) / 2
    to_limit = constraints.clip_to(middle - reach, middle + reach)
    actor_optimizer = adam(config.lr, config.grad_norm)
    critic_optimizer = adam(config.critic_lr, config.grad_norm)

    def sampled_value(state: TrainState, batch: Transition, draws: Draws):
        repeated = jnp.repeat(batch.next_observation, N, axis=0)
        action = parts.sample_action(state.actor_ema, repeated, draws.target)
        q = critic.apply(state.critic_target, repeated, action)
        return max_q_backup(q.reshape(2, -1, N)) if N > 1 else clipped_double_q(q)

    def learned_value(state: TrainState, batch: Transition, draws: Draws):
        return parts.value_of(state.value, batch.next_observation)

    def fit_value(state: TrainState, batch: Transition):
        q = critic.apply(state.critic_target, batch.observation, batch.action)

        def objective(params):
            value = parts.value_of(params, batch.observation)
            return value_loss(q, value, config.expectile)

        loss, gradients = jax.value_and_grad(objective)(state.value)
        value, opt = gradient_step(
            critic_optimizer, state.value, state.value_opt, gradients
        )
        return state._replace(value=value, value_opt=opt), {"value_loss": loss}

    def no_value(state: TrainState, batch: Transition):
        return state, {}

    next_value = learned_value if learns_value else sampled_value
    update_value = fit_value if learns_value else no_value

    def critic_objective(params, state: TrainState, batch: Transition, draws: Draws):
        value = next_value(state, batch, draws)
        target = td_target(batch.reward, batch.discount, value, config.discount)
        q = critic.apply(params, batch.observation, batch.action)
        return critic_loss(q, jax.lax.stop_gradient(target)), jnp.mean(q)

    def init(key: PRNGKeyArray) -> TrainState:
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        observation, action = jnp.zeros((1, O)), jnp.zeros((1, A))
        actor_params = actor.init(actor_key, action, jnp.zeros((), int), observation)
        critic_params = critic.init(critic_key, observation, action)
        value = parts.value.init(value_key, observation) if learns_value else {}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            actor=actor_params,
            actor_ema=actor_params,
            actor_opt=actor_optimizer.init(actor_params),
            critic=critic_params,
            critic_target=critic_params,
            critic_opt=jax.vmap(critic_optimizer.init)(critic_params),
            value=value,
            value_opt=critic_optimizer.init(value) if learns_value else (),
        )

    def sample_batch(key, dataset) -> Transition:
        batch = transitions(key, dataset, B)
        return batch._replace(action=to_limit(batch.action))

    def draw(key: PRNGKeyArray) -> Draws:
        target_key, k_key, noise_key, coin_key, around_key = jax.random.split(key, 5)
        return Draws(
            target=reverse.draw_chain(target_key, parts.sampler.draws, (chain_rows, A)),
            k=jax.random.randint(k_key, (B,), 0, config.diffusion_steps),
            noise=jax.random.normal(noise_key, (B, A)),
            coin=jax.random.uniform(coin_key),
            around=jax.random.normal(around_key, (around, B, A)),
        )

    def update_step(state: TrainState, batch: Transition, draws: Draws):
        # The authors' order: V first, then actor and critics, both judged by the
        # critics from before the update.
        state, value_metrics = update_value(state, batch)
        (critic_value, q_mean), critic_gradients = jax.value_and_grad(
            critic_objective, has_aux=True
        )(state.critic, state, batch, draws)
        (actor_value, (bc_loss, guide_loss)), actor_gradients = jax.value_and_grad(
            parts.actor_loss, has_aux=True
        )(state.actor, state, batch, draws)
        actor_params, actor_opt = gradient_step(
            actor_optimizer, state.actor, state.actor_opt, actor_gradients
        )
        # Mapped over the two critics: each clips its own gradient.
        critic_params, critic_opt = jax.vmap(
            functools.partial(gradient_step, critic_optimizer)
        )(state.critic, state.critic_opt, critic_gradients)
        updates = state.step + 1
        averaging = (updates % config.ema_every == 0) & (updates > config.ema_start)
        averaged = polyak(state.actor_ema, actor_params, 1 - config.ema_decay)
        new_state = state._replace(
            step=updates,
            actor=actor_params,
            actor_ema=select(averaging, averaged, state.actor_ema),
            actor_opt=actor_opt,
            critic=critic_params,
            critic_target=polyak(state.critic_target, critic_params, config.tau),
            critic_opt=critic_opt,
        )
        metrics: Metrics = {
            "bc_loss": bc_loss,
            "guide_loss": guide_loss,
            "actor_loss": actor_value,
            "critic_loss": critic_value,
            "q_mean": q_mean,
            "actor_grad_norm": optax.tree.norm(actor_gradients),
            "critic_grad_norm": optax.tree.norm(critic_gradients),
            **value_metrics,
        }
        return new_state, metrics

    def policy(state: TrainState) -> Policy:
        return Policy(state.actor, state.critic)

    def act(policy: Policy, carry, observation, key):
        chain_key, choice_key = jax.random.split(key)
        repeated = jnp.broadcast_to(observation, (config.candidates, O))
        shape = (config.candidates, A)
        draws = reverse.draw_chain(chain_key, parts.sampler.draws, shape)
        actions = parts.sample_action(policy.actor, repeated, draws)
        q = clipped_double_q(critic.apply(policy.critic, repeated, actions))
        return actions[choose(choice_key, q, config.temperature)], carry

    return Agent(init, sample_batch, draw, update_step, policy, no_carry, act)
