"""EDP, efficient diffusion policies (Kang et al., NeurIPS 2023, arXiv:2305.20081).

| paper | here |
|---|---|
| L_d and the action approximation | `approximation.approximate` |
| TD3: L = L_d - eta E Q / E abs(Q) | `td3` |
| CRR and IQL: L = L_d - E w log pi(a | s) | `crr`, `iql` |
| log pi, by the approximation or by the chain's bound | `approximation` |
| Q of TD3 and CRR: double Q-learning | `double_q` |
| V and Q of IQL | `expectile.implicit_q` |
| energy-based action selection | `selection.softmax` |

Diffusion-QL improves its policy through the whole chain.  EDP takes the estimate of the
clean action that the noise network gives anyway when it is trained, so that one call of
the network serves cloning and improvement, however many diffusion steps there are.

The price is bias: at high noise the estimate is a mean of the actions that the noisy
one may come from, often where there are no data (at +-1, with vp and 100 steps, half of
them lie within +-0.5), and the critic is asked there.  `k_max` keeps improvement to the
diffusion steps below it.

The defaults are the authors' for their DPM-Solver: 1000 diffusion steps, 15 network
calls for an action, in targets too.  Their program without that flag has 100 steps and
the full chain: `--config=edp:ancestral`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents import actors, base, critics
from jdql.agents.base import Agent, Metrics
from jdql.checks import at_least, one_of
from jdql.data.sampling import transitions
from jdql.diffusion import approximation, reverse, schedules
from jdql.networks.mlp import MLP, Critic, member_q, value_function
from jdql.optim import Averaging, Model, adam, descend, follow, per_member, start
from jdql.rl import expectile, improvement, selection, weights
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are those of the authors' code for their DPM-Solver."""

    # policy improvement: loss = bc_weight L_d + guide_weight L_rule
    rule: str = "td3"  # or crr, iql
    bc_weight: float = 1.0  # the authors' td3 has no such factor
    guide_weight: float = 1.0
    eta: float = 2.0  # td3: weight of the Q term, "alpha" there
    likelihood: str = "fixed_std"  # crr and iql; or elbo, theirs for crr alone
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

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(self, batch_size=32, hidden=(32, 32), step_dim=8)
        short = dataclasses.replace(small, diffusion_steps=5, sample_steps=3)
        few = dataclasses.replace(short, backup_actions=2, crr_actions=3, candidates=4)
        quick = dataclasses.replace(few, lr=2e-3, critic_lr=2e-3, schedule="vp")
        return dataclasses.replace(quick, ema_every=2, ema_start=2)


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Model  # its average acts in the targets of td3 and crr
    critic: Model  # its average is the target critic
    value: Model  # V of iql; no parameters otherwise


class Draws(NamedTuple):
    """The noise of one update."""

    target: reverse.ChainDraws  # of B next actions, 10 B with max-Q backup, 0 for iql
    k: Int[Array, " B"]  # diffusion steps of the actor's loss
    noise: Float[Array, "B A"]  # of the actor's loss
    coin: Float[Array, ""]  # uniform; td3 raises Q_1 above one half, else Q_2
    baseline: Float[Array, "N B A"]  # of the actions of crr's baseline, else N = 0


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    guide_loss: Callable[..., Array]  # (parts, state, batch, a0_hat, log pi, draws)
    critic_loss: Callable[..., Any]  # (params, parts, state, batch, draws)
    schedule: schedules.Schedule  # of the K diffusion steps
    likelihood: approximation.Likelihood  # of crr and iql
    share: Callable[[Array], Any]  # weight of each diffusion step in the improvement
    actor: actors.Actor
    critic: Critic  # of two members
    smaller_q: Callable[[Params, Array, Array], Array]
    value: MLP
    implicit_q: expectile.ImplicitQ  # the losses of iql's critics
    actor_optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation  # of V, and of each critic alone


def td3(parts: Parts, state: TrainState, batch: Transition, estimate, log_pi, draws):
    """-E Q / E abs(Q) at the approximated action, for one of the critics."""
    member = jnp.where(draws.coin > 0.5, 0, 1)
    critic, params = parts.critic, state.critic.params
    q = member_q(critic, params, member, batch.observation, estimate)
    loss = improvement.self_normalised_q_loss(q, parts.share(draws.k))
    return parts.config.eta * loss


def crr(parts: Parts, state: TrainState, batch: Transition, estimate, log_pi, draws):
    """-E w log pi(a | s), w by the advantage over actions near the approximated one."""
    config, actions = parts.config, jax.lax.stop_gradient(estimate) + draws.baseline
    q, baseline = weights.values(parts.smaller_q, state.critic.params, batch, actions)
    beta, largest = config.crr_temperature, config.crr_max_weight
    weight = weights.crr_weight(q, baseline, beta, largest)
    return improvement.weighted_likelihood_loss(log_pi, weight)


def iql(parts: Parts, state: TrainState, batch: Transition, estimate, log_pi, draws):
    """-E w log pi(a | s), w by the advantage Q - V of IQL's critics."""
    q = parts.smaller_q(state.critic.average, batch.observation, batch.action)
    v = value_function(parts.value)(state.value.params, batch.observation)
    scale, largest = parts.config.inverse_temperature, parts.config.max_weight
    weight = weights.awr_weight(q, v, scale, largest)
    return improvement.weighted_likelihood_loss(log_pi, weight)


def double_q(params: Params, parts: Parts, state: TrainState, batch: Transition, draws):
    """Both critics regress to r + gamma min_i Q'_i(s', a')."""
    actor, gamma = parts.actor, parts.config.discount
    return critics.double_q_loss(
        params, parts.critic, actor, state, batch, draws.target, gamma
    )


def iql_q(params: Params, parts: Parts, state: TrainState, batch: Transition, draws):
    """Both critics regress to r + gamma V(s')."""
    return parts.implicit_q.critic_loss(params, state.value.params, batch)


# How the policy improves, and what the critics learn.
RULES = {"td3": (td3, double_q), "crr": (crr, double_q), "iql": (iql, iql_q)}


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    at_least("crr_actions", config.crr_actions)
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    critic, value = Critic(config.hidden), MLP(config.hidden, 1)
    value_of = value_function(value)
    return Parts(
        config,
        *one_of("rule", config.rule, RULES),
        schedule,
        approximation.likelihood(config.likelihood),
        approximation.shares(config.diffusion_steps, config.k_max),
        actors.noise_mlp(config, spec, schedule),
        critic,
        critics.smaller_q(critic),
        value,
        expectile.implicit_q(critic.apply, value_of, config.expectile, config.discount),
        adam(config.lr, config.grad_norm),
        adam(config.critic_lr, config.grad_norm),
    )


def actor_loss(
    params: Params, parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """L_d and the rule's loss, from one call of the noise network."""
    config, schedule = parts.config, parts.schedule
    predict = parts.actor.predict(params, batch.observation)
    estimate, error = approximation.approximate(
        schedule, predict, batch.action, draws.k, draws.noise, parts.actor.to_bounds
    )
    bc_loss = jnp.mean(error)
    log_pi = parts.likelihood(schedule, batch.action, estimate, error, draws.k)
    log_pi = parts.share(draws.k) * log_pi
    guide_loss = parts.guide_loss(parts, state, batch, estimate, log_pi, draws)
    metrics = {"bc_loss": bc_loss, "guide_loss": guide_loss}
    return config.bc_weight * bc_loss + config.guide_weight * guide_loss, metrics


def init(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> TrainState:
    """Fresh networks; the averages are their copies."""
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    critic = parts.critic.init(critic_key, *base.blank(spec))
    value = parts.value.init(value_key, base.blank(spec)[0])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        actor=start(parts.actor.init(actor_key), parts.actor_optimizer, averaged=True),
        critic=start(critic, per_member(parts.critic_optimizer), averaged=True),
        value=start(
            value if parts.config.rule == "iql" else {}, parts.critic_optimizer
        ),
    )


def draw(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    config, rule, A = parts.config, parts.config.rule, spec.action_dim
    B, N = config.batch_size, config.backup_actions if config.max_q_backup else 1
    target_key, k_key, noise_key, coin_key, baseline_key = jax.random.split(key, 5)
    others = config.crr_actions if rule == "crr" else 0
    return Draws(
        target=parts.actor.draw(target_key, (0 if rule == "iql" else B * N,)),
        k=jax.random.randint(k_key, (B,), 0, config.diffusion_steps),
        noise=jax.random.normal(noise_key, (B, A)),
        coin=jax.random.uniform(coin_key),
        baseline=jax.random.normal(baseline_key, (others, B, A)),
    )


def update_step(
    parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[TrainState, Metrics]:
    """The authors' order: V, then critics and actor, both judged by the old critics."""
    config, optimizer = parts.config, parts.critic_optimizer
    value_metrics: Metrics = {}
    if parts.critic_loss is iql_q:
        inputs = parts.implicit_q.value_loss, state.critic.average, batch
        value, value_metrics = descend("value", optimizer, state.value, *inputs)
        state = state._replace(value=value)
    each, loss = per_member(optimizer), parts.critic_loss
    critic, critic_metrics = descend(
        "critic", each, state.critic, loss, parts, state, batch, draws
    )
    optimizer = parts.actor_optimizer
    actor, actor_metrics = descend(
        "actor", optimizer, state.actor, actor_loss, parts, state, batch, draws
    )
    # The authors count the update that is being made, and start after `ema_start`.
    rule = Averaging(1 - config.ema_decay, config.ema_start + 1, config.ema_every)
    actor = follow(actor, rule, count=state.step + 1)
    critic = follow(critic, Averaging(config.tau))
    new_state = TrainState(state.step + 1, actor, critic, state.value)
    return new_state, {**actor_metrics, **critic_metrics, **value_metrics}


def make(config: Config, spec: DataSpec, given: base.Stages = base.NOTHING) -> Agent:
    """Builds EDP; raises ValueError for settings out of range."""
    del given
    parts, bind = build(config, spec), functools.partial
    sample = bind(transitions, batch_size=config.batch_size)
    select = selection.softmax(config.temperature)
    return Agent(
        init=bind(init, parts, spec),
        sample_batch=actors.off_bounds(sample, spec, config.action_limit),
        draw=bind(draw, parts, spec),
        update_step=bind(update_step, parts),
        # Acting takes the online networks.
        learned=lambda s: actors.ActorCritic(s.actor.params, s.critic.params),
        acting=actors.best_of(config.candidates, parts.actor, parts.smaller_q, select),
    )
