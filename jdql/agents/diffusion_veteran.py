"""Diffusion Veteran: many plans of distant states, the best followed (Lu et al. 2025).

"What Makes a Good Diffusion Planner for Decision Making?", ICLR 2025, arXiv:2503.00535.
A diffusion transformer draws N plans from the state that is seen: states that are
`stride` steps apart.  A value chooses one of them, and a second diffusion, an inverse
dynamics, draws the action that leads towards its next state.

| paper | here |
|---|---|
| Monte Carlo sampling with selection (MCSS), unconditional | `plans`, `choose` |
| a transformer as denoising network | `jdql.networks.dit.DiT`, `planner_loss` |
| separate generation of states and actions | `actor_loss`, `follow` |
| jump-step planning | `sample_batch`, `Config.stride` |

The networks are trained together, on batches of one dataset, each by its own optimiser.
A plan is made at every step; with `execute` more than 1, the steps up to the next one
aim at states between those of the last.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdql.agents import actors, plan_values
from jdql.agents.actors import Actor
from jdql.agents.base import (
    NOTHING,
    Acting,
    Agent,
    Metrics,
    Stages,
    action_bounds,
    followed,
)
from jdql.agents.plan_values import Evidence, PlanValue
from jdql.agents.trajectories import Units, state_size
from jdql.checks import at_least, finite
from jdql.data import sampling, windows
from jdql.data.dataset import Dataset
from jdql.data.episodes import paid_before
from jdql.diffusion import constraints, losses, reverse, samplers, schedules
from jdql.networks.dit import DiT, FourierStep
from jdql.networks.mlp import NoiseNetwork
from jdql.networks.transformer import check_heads
from jdql.optim import Averaging, Model, adamw, descend, everything, start
from jdql.optim import follow as moved
from jdql.types import (
    Array,
    Constraint,
    DataSpec,
    Float,
    Int,
    Params,
    PRNGKeyArray,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors' for locomotion."""

    # plans
    horizon: int = 4
    stride: int = 1  # environment steps from one state of a plan to the next
    states: int | None = None  # of an observation's numbers, the first; None: all
    padding: bool = False  # windows go on behind an episode's end, in its last state
    # The columns of an observation that hold the goal of as many first columns, where
    # rewards are above 0 at the goal alone.  Behind the arrival, the states of windows
    # are the goal's, at rest, and the return is that of an arrival so many steps on.
    goal: tuple[int, ...] = ()
    # value
    value: str = "state"  # or "plan": see `plan_values`
    discount: float = 0.997
    termination_penalty: float = -100.0  # part of a true end's reward, in returns
    tau: float = 0.005  # of the target network of "state"
    value_lr: float = 3e-4
    value_updates: int | None = None  # in which it learns; None: all
    # planner
    weight: float = 2.0  # of a window: exp(weight (return - 1)), returns in [-1, 1]
    planner_lr: float = 2e-4
    planner_ema_decay: float = 0.9999
    diffusion_steps: int = 1000
    schedule: str = "scaled_linear"
    # inverse dynamics
    rebase: tuple[int, ...] = ()  # columns of states of which it sees differences alone
    actor_lr: float = 3e-4
    actor_ema_decay: float = 0.995
    actor_steps: int = 10  # of diffusion
    actor_schedule: str = "cosine"
    # all of them
    batch_size: int = 128
    decay_steps: int | None = 1_000_000  # rates fall to 0 as half a cosine; None: stay
    # networks
    width: int = 256
    heads: int = 8
    depth: int = 2
    step_dim: int = 128
    value_depth: int = 2  # of "plan"
    value_hidden: tuple[int, ...] = (256, 256)  # of "state"
    actor_hidden: tuple[int, ...] = (256, 256, 256)
    actor_step_dim: int = 64
    # acting
    candidates: int = 50
    sampler: str = "ddim"
    sample_steps: int | None = 20  # None: diffusion_steps
    temperature: float = 1.0  # multiplies the noise that a plan begins as
    actor_temperature: float = 0.5  # and an action
    execute: int = 1  # steps until the next plan

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(self, batch_size=32, width=16, heads=2, depth=1)
        nets = dataclasses.replace(small, step_dim=16, value_depth=1, actor_step_dim=8)
        narrow = dataclasses.replace(nets, value_hidden=(16,), actor_hidden=(32, 32))
        plan = dataclasses.replace(narrow, horizon=3, stride=min(self.stride, 2))
        chain = dataclasses.replace(plan, schedule="vp", diffusion_steps=10)
        rates = dataclasses.replace(chain, planner_lr=2e-3, actor_lr=2e-3)
        acting = dataclasses.replace(rates, candidates=3, sample_steps=5, execute=1)
        return dataclasses.replace(
            acting, planner_ema_decay=0.98, decay_steps=None, termination_penalty=0.0
        )


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    planner: Model  # what plans is its average
    value: Model
    actor: Model  # what acts is its average


class Learned(NamedTuple):
    """What acts: averaged planner and actor, and the value as it is."""

    planner: Params
    value: Params
    actor: Params


class Batch(NamedTuple):
    """What the networks of one update learn from."""

    given: Evidence  # plans with their returns, and transitions
    pair: Float[Array, "B P"]  # two states, `stride` steps apart; see `pair_of`
    action: Float[Array, "B A"]  # the first of those that led from one to the other


class Data(NamedTuple):
    """A dataset, and of each of its transitions ..."""

    dataset: Dataset
    label: Any  # [N] the return from here on, in [-1, 1]
    arrived: Any  # [N] whether the goal was reached before; None without a goal


class Draws(NamedTuple):
    """The noise of one update: diffusion steps and standard normals."""

    k: Int[Array, " B"]
    noise: Float[Array, "B H S"]
    actor_k: Int[Array, " B"]
    actor_noise: Float[Array, "B A"]


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    spec: DataSpec
    states: int  # S
    network: DiT
    schedule: schedules.Schedule
    sampler: samplers.Sampler  # of plans
    optimizer: optax.GradientTransformation
    value: PlanValue
    actor: Actor  # given pairs
    actor_schedule: schedules.Schedule
    actor_optimizer: optax.GradientTransformation


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    states = check(config, spec)
    step = functools.partial(timed, config.diffusion_steps)
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    actor_schedule = schedules.make_schedule(config.actor_schedule, config.actor_steps)
    noise = NoiseNetwork(spec.action_dim, config.actor_hidden, config.actor_step_dim)
    bounds = constraints.clip_to(*action_bounds(spec))
    actor_sampler = samplers.make_sampler(
        actor_schedule, "ancestral", constraint=bounds
    )
    of_pairs = spec._replace(observation_dim=2 * states)
    return Parts(
        config,
        spec,
        states,
        DiT(config.width, config.heads, config.depth, config.step_dim, step),
        schedule,
        samplers.make_sampler(schedule, config.sampler, config.sample_steps),
        # Deviation: the authors' decay of 1e-5 is of biases too; at these rates it
        # takes less than a thousandth off them in a million updates.
        adamw(config.planner_lr, config.decay_steps, 1e-5),
        plan_values.make(config),
        actors.diffusion(noise, of_pairs, actor_sampler),
        actor_schedule,
        # The decay that PyTorch's AdamW has where none is given.
        adamw(config.actor_lr, config.decay_steps, 0.01, decays=everything),
    )


def check(config: Config, spec: DataSpec) -> int:
    """The number of states, S; refuses settings that cannot be.

    A float may be traced, and then passes.
    """
    for name in ("stride", "candidates", "execute", "depth", "value_depth"):
        at_least(name, getattr(config, name))
    check_heads(config.width, config.heads)
    last = (at_least("horizon", config.horizon, 2) - 2) * config.stride + 1
    if config.execute > last:
        raise ValueError(
            f"execute must be at most (horizon - 2) stride + 1, {last}, where a plan's "
            f"states end; got {config.execute}"
        )
    S = state_size(config.states, config.goal, spec)
    if any(not 0 <= column < S for column in config.rebase):
        raise ValueError(
            f"rebase={config.rebase} must name columns of states, 0 to {S - 1}"
        )
    if config.step_dim < 8 or config.step_dim % 8:
        raise ValueError(f"step_dim must be a multiple of 8, got {config.step_dim}")
    finite(config, "weight", "temperature", "actor_temperature")
    return S


def timed(steps: int, dim: int) -> Callable[[Array], Array]:
    """The embedding of step k as the time (k + 1) / K."""
    # Deviation: the authors train at any time from 0.001 to 1, not at K of them.
    embed = FourierStep(dim)
    return lambda k: embed((k + 1) / steps)


# Training -----------------------------------------------------------------------------


def held(parts: Parts, values: Float[Array, "..."]) -> Constraint:
    """The clamp of plans whose first state is known."""
    return constraints.inpaint(np.arange(parts.config.horizon)[:, None] < 1, values)


def planner_loss(
    params: Params, parts: Parts, given: Evidence, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """mean of exp(weight (R - 1)) (eps - eps_hat)^2, the first state clean, no error.

    The mean is over all H states.  R in [-1, 1] is the return of the window, so that
    with a weight the better windows are learned more; with 0 all are alike.
    """
    loss = losses.denoising_loss(
        parts.schedule,
        functools.partial(parts.network.apply, params),
        given.plan,
        draws.k,
        draws.noise,
        weights=jnp.exp(parts.config.weight * (given.label - 1)),
        clamp=held(parts, given.plan),
    )
    return loss, {}


def actor_loss(
    params: Params, parts: Parts, batch: Batch, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """mean of (eps - eps_hat)^2 in actions, given the states of their pairs."""
    predict, noise = parts.actor.predict(params, batch.pair), draws.actor_noise
    loss = losses.denoising_loss(
        parts.actor_schedule, predict, batch.action, draws.actor_k, noise
    )
    return loss, {}


def pair_of(
    parts: Parts, state: Float[Array, "*B S"], following: Float[Array, "*B S"]
) -> Float[Array, "*B P"]:
    """[s, s'], both minus s in the columns of `rebase`; P = 2 S."""
    columns = np.isin(np.arange(parts.states), parts.config.rebase)
    origin = jnp.where(columns, state, 0.0)
    return jnp.concatenate([state - origin, following - origin], axis=-1)


def init(parts: Parts, key: PRNGKeyArray) -> TrainState:
    """Fresh networks."""
    planner_key, value_key, actor_key = jax.random.split(key, 3)
    plan = jnp.zeros((1, parts.config.horizon, parts.states))
    step = jnp.zeros((), jnp.int32)
    planner = parts.network.init(planner_key, plan, step)
    actor = parts.actor.init(actor_key)
    return TrainState(
        step,
        start(planner, parts.optimizer, averaged=True),
        parts.value.init(value_key, plan),
        start(actor, parts.actor_optimizer, averaged=True),
    )


def reach(config: Config) -> dict[str, int]:
    """The length of windows, how far they go behind an episode's end, their stride."""
    after = (config.horizon - 1) * config.stride if config.padding else 0
    return {"length": config.horizon, "after": after, "stride": config.stride}


def prepare(parts: Parts, dataset: Dataset) -> Data:
    """Labels every transition with the return that follows it; see `unit_returns`.

    Raises:
      ValueError: all episodes are too short, or all returns alike.
    """
    config = parts.config
    windows.require(dataset.episode_ends, **reach(config))
    windows.require(dataset.episode_ends, config.stride)  # for pairs
    discount, penalty = float(config.discount), float(config.termination_penalty)
    arrived = paid_before(dataset) if config.goal else None
    label = plan_values.unit_returns(dataset, discount, penalty, arrived)
    return Data(dataset, label, arrived)


def sample_batch(parts: Parts, key: PRNGKeyArray, data: Data) -> Batch:
    """Strided windows with their returns, transitions, and pairs of states.

    A pair is a state and the one after `stride` transitions, all in one episode.
    """
    # Deviation: near an end the authors' pairs end in the last state, steps too early.
    config, dataset, S = parts.config, data.dataset, parts.states
    ends, B = dataset.episode_ends, config.batch_size
    plan_key, step_key, pair_key = jax.random.split(key, 3)
    rows = sampling.window_rows(plan_key, ends, B, **reach(config)).row
    step = sampling.transitions(step_key, dataset, B)
    step = step._replace(
        observation=step.observation[:, :S],
        next_observation=step.next_observation[:, :S],
    )
    pair = sampling.window_rows(pair_key, ends, B, config.stride).row
    now, then = pair[:, 0], pair[:, -1]
    state, following = dataset.observation[now], dataset.next_observation[then]
    return Batch(
        Evidence(states_of(parts, data, rows), data.label[rows[:, 0]], step),
        pair_of(parts, state[:, :S], following[:, :S]),
        dataset.action[now],
    )


def states_of(
    parts: Parts, data: Data, rows: Int[Array, "B H"]
) -> Float[Array, "B H S"]:
    """The states of windows; behind an arrival at the goal they stay there, at rest."""
    observation, S = data.dataset.observation[rows], parts.states
    if not parts.config.goal:
        return observation[..., :S]
    # Deviation: the authors' windows stay in the state of the arrival, in which nobody
    # can, and their score counts all later steps as paid.
    still = Units(parts.spec).at_rest(observation, parts.config.goal, S)
    there = data.arrived[rows].at[:, 0].set(False)
    return jnp.where(there[..., None], still, observation[..., :S])


def draw(parts: Parts, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    k_key, noise_key, actor_k_key, actor_noise_key = jax.random.split(key, 4)
    B, H, A = parts.config.batch_size, parts.config.horizon, parts.spec.action_dim
    return Draws(
        k=jax.random.randint(k_key, (B,), 0, parts.schedule.steps),
        noise=jax.random.normal(noise_key, (B, H, parts.states)),
        actor_k=jax.random.randint(actor_k_key, (B,), 0, parts.actor_schedule.steps),
        actor_noise=jax.random.normal(actor_noise_key, (B, A)),
    )


def update_step(
    parts: Parts, state: TrainState, batch: Batch, draws: Draws
) -> tuple[TrainState, Metrics]:
    """One step of each network, and of the averages."""
    planner, planner_metrics = descend(
        "planner",
        parts.optimizer,
        state.planner,
        planner_loss,
        parts,
        batch.given,
        draws,
    )
    actor, actor_metrics = descend(
        "actor", parts.actor_optimizer, state.actor, actor_loss, parts, batch, draws
    )
    value, value_metrics = parts.value.update(state.step, state.value, batch.given)
    new_state = TrainState(
        state.step + 1,
        moved(planner, Averaging(1 - parts.config.planner_ema_decay)),
        value,
        moved(actor, Averaging(1 - parts.config.actor_ema_decay)),
    )
    return new_state, {**planner_metrics, **actor_metrics, **value_metrics}


def learned(state: TrainState) -> Learned:
    """What acts."""
    return Learned(state.planner.average, state.value.params, state.actor.average)


# Acting -------------------------------------------------------------------------------


def plans(
    parts: Parts, learned: Learned, state: Float[Array, " S"], key: PRNGKeyArray
) -> Float[Array, "N H S"]:
    """The candidates: N plans that begin here."""
    config = parts.config
    shape = (config.candidates, config.horizon, parts.states)
    draws = reverse.draw_chain(key, parts.sampler.draws, shape)
    return parts.sampler.sample(
        functools.partial(parts.network.apply, learned.planner),
        draws._replace(start=config.temperature * draws.start),
        clamp=held(parts, state),
    )


def choose(
    parts: Parts, learned: Learned, plans: Float[Array, "N H S"]
) -> Float[Array, "H S"]:
    """The plan of the highest value."""
    return plans[jnp.argmax(parts.value.score(learned.value, plans))]


def aims(parts: Parts, plan: Float[Array, "H S"]) -> Float[Array, "h S"]:
    """The states to aim at in turn, each `stride` steps ahead along the plan.

    The first is the plan's next one; between two states of a plan lies a line.
    """
    # Deviation: the authors plan at every step and aim at the first of these alone.
    at = 1 + np.arange(parts.config.execute) / parts.config.stride
    before = np.minimum(at.astype(int), parts.config.horizon - 2)
    share = jnp.float32(at - before)[:, None]
    return (1 - share) * plan[before] + share * plan[before + 1]


def follow(
    parts: Parts,
    learned: Learned,
    row: Float[Array, " W"],
    observation: Float[Array, " O"],
) -> Float[Array, " A"]:
    """The action that leads towards a state, of which the row holds the noise too."""
    S, A = parts.states, parts.spec.action_dim
    pair, noise = pair_of(parts, observation[:S], row[:S]), row[S:].reshape(-1, A)
    begin = parts.config.actor_temperature * noise[0]
    return parts.actor.sample(learned.actor, pair, reverse.ChainDraws(begin, noise[1:]))


def acting(parts: Parts) -> Acting:
    """Plans, and acts by inverse dynamics; of several steps it hands out the aims.

    A row is a state, and then the noise of its action's chain, the start first.
    """
    h = parts.config.execute
    width = (1 + parts.actor_schedule.steps) * parts.spec.action_dim

    def plan(learned: Learned, observations: Array, key: PRNGKeyArray) -> Array:
        plan_key, noise_key = jax.random.split(key)
        now = observations[-1]
        candidates = plans(parts, learned, now[: parts.states], plan_key)
        states = aims(parts, choose(parts, learned, candidates))
        noise = jax.random.normal(noise_key, (h, width))
        return jnp.concatenate([states, noise], axis=-1)

    return followed(plan, functools.partial(follow, parts), h)


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds Diffusion Veteran; raises ValueError for settings out of range."""
    del given
    parts, bind = build(config, spec), functools.partial
    return Agent(
        init=bind(init, parts),
        sample_batch=bind(sample_batch, parts),
        draw=bind(draw, parts),
        update_step=bind(update_step, parts),
        learned=learned,
        prepare=bind(prepare, parts),
        acting=acting(parts),
    )
