"""Diffuser: planning is denoising a trajectory (Janner et al. 2022).

"Planning with Diffusion for Flexible Behavior Synthesis", ICML 2022, arXiv:2205.09991.
A diffusion of whole trajectories [action, state] whose first state is held at what is
seen and, where there is a goal, whose last one is held at the goal.

| paper | here |
|---|---|
| eq. 2, trajectories as rows of action and state | `trajectories.Layout` |
| the loss of section 3, x0-prediction with held states | `trajectory_loss` |
| section 3.3, goals by in-painting; algorithm 1 without its guide | `propose` |
| section 5.1, a waypoint controller follows the plan in mazes | `follow` |

Plans guided by a value (algorithm 1 as a whole) are of `diffuser_guided`, a second run
on this one.  Without goal and value a plan is a likely future, and acting is cloning.

With `goal` the plan is followed, not its actions: the force of each step is
(x* - x) + (v* - v), x* and v* being the plan's next position and speed, in the
environment's units.  Behind its end the plan's last position is held.

The defaults are the authors' for locomotion; batches of 64 are their two accumulated
ones of 32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents import plan_lengths, trajectories
from jdql.agents.base import (
    NOTHING,
    Acting,
    Agent,
    Carry,
    Metrics,
    Stages,
    action_bounds,
)
from jdql.agents.trajectories import Draws, Layout, Units
from jdql.checks import at_least
from jdql.config import STATIC
from jdql.data.dataset import Dataset
from jdql.diffusion import losses, process, reverse, samplers, schedules
from jdql.diffusion.chain import Guidance
from jdql.networks.temporal_layers import LinearAttention
from jdql.networks.temporal_unet import TemporalUnet
from jdql.optim import Model, adam, descend
from jdql.types import Array, Constraint, DataSpec, Float, Int, Params, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors' for locomotion."""

    # trajectories
    horizon: int = 32
    states: int | None = None  # of an observation's numbers, the first; None: all
    # The columns of an observation that hold the goal of as many first columns.  The
    # rest of the goal's state is 0, at rest; the first half of a state is positions,
    # the second half their speeds.
    goal: tuple[int, ...] = ()
    padding: bool = True  # windows go on behind an episode's end
    # loss
    action_weight: float = 10.0  # of the first action
    loss_discount: float = 1.0
    lr: float = 2e-4
    batch_size: int = 64
    ema_decay: float = 0.995
    ema_every: int = 10
    ema_start: int = 2000
    # diffusion
    diffusion_steps: int = 20
    schedule: str = "cosine"
    predict: str = "x0"  # or "epsilon"
    clip: bool = False  # estimates of x_0 to [-1, 1], for data of that range
    # network
    dim: int = 32
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    kernel: int = 5
    attention: bool = False
    # acting
    sampler: str = "ancestral"
    sample_steps: int | None = None  # None: diffusion_steps
    plan_horizon: int | None = None  # of plans; None: horizon
    # Horizons of shorter plans to a goal.  Of the first one whose plans all move as
    # their own speeds say, to `jump` in the units of positions, the smoothest of
    # `candidates` plans is taken; else that of `plan_horizon`.
    shorter: tuple[int, ...] = ()
    candidates: int = 1
    jump: float = dataclasses.field(default=0.35, metadata=STATIC)
    # Of the environment, in the units of speeds.
    time_step: float = dataclasses.field(default=0.01, metadata=STATIC)
    execute: int = 1  # steps of a plan before the next one
    # A plan begins as the last one, noised to this diffusion step; None: as noise.
    warm_start: int | None = None

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(self, horizon=4, batch_size=32, dim=16, kernel=3)
        quick = dataclasses.replace(small, dim_mults=(1,), attention=False, lr=2e-3)
        planned = dataclasses.replace(
            quick,
            plan_horizon=None,
            shorter=(),
            candidates=1,
            sample_steps=None,
            warm_start=None,
        )
        return dataclasses.replace(
            planned, diffusion_steps=10, ema_start=10, execute=min(self.execute, 3)
        )


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    planner: Model  # what plans is its average


class Last(NamedTuple):
    """What a warm start remembers: the last plan, and whether there is one."""

    plan: Float[Array, "H D"]
    made: Float[Array, ""]


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    layout: Layout
    spec: DataSpec
    network: TemporalUnet
    schedule: schedules.Schedule
    sampler: samplers.Sampler
    warmed: samplers.Sampler | None  # goes on from a warm start
    plan_horizon: int
    optimizer: optax.GradientTransformation


# `(learned, carry, observation [O], key) -> (plan [H, D], carry)`
Propose = Callable[..., tuple[Array, Carry]]


class Planner(NamedTuple):
    """What a later stage may do with the planner; `learned` is its parameters.

    Attributes:
      layout: of trajectories.
      schedule: of the diffusion.
      config: its settings.
      plans: `(learned, carry, observation [O], key, count, guide) -> [2, count, H, D]`,
        before the last denoising step and after it.
      chain: `(learned, observation [O], key, count) -> [n + 1, count, H, D]`,
        from noise on.
      acting: `(propose) -> Acting` of a rule that proposes one plan.
      remember: `(carry, plan [H, D]) -> carry`, for the next warm start.
    """

    layout: Layout
    schedule: schedules.Schedule
    config: Config
    plans: Callable[..., Array]
    chain: Callable[..., Array]
    acting: Callable[[Propose], Acting]
    remember: Callable[[Carry, Array], Carry]


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    at_least("execute", config.execute)
    layout = layout_of(config, spec)
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    horizon = at_least("horizon", config.horizon, 2)
    plan_horizon = at_least("plan_horizon", config.plan_horizon or horizon, 2)
    goes = bool(config.goal) and config.warm_start is None
    plan_lengths.check(config.shorter, plan_horizon, config.candidates, goes)
    if not config.goal and config.execute > plan_horizon:
        raise ValueError(
            f"execute={config.execute} is more than the {plan_horizon} actions of a "
            "plan: plan more steps or execute fewer"
        )
    attention = LinearAttention if config.attention else None
    network = trajectories.temporal_unet(
        config, horizon, plan_horizon, *config.shorter, attention=attention
    )
    sampler, warmed = samplers_of(config, schedule)
    return Parts(
        config,
        layout,
        spec,
        network,
        schedule,
        sampler,
        warmed,
        plan_horizon,
        adam(config.lr),
    )


def layout_of(config: Config, spec: DataSpec) -> Layout:
    """What trajectories are made of; raises ValueError where that cannot be."""
    states = trajectories.state_size(config.states, config.goal, spec)
    if config.goal and states != 2 * spec.action_dim:
        raise ValueError(
            f"a plan to a goal is followed by {spec.action_dim} forces, with states of "
            f"as many positions and as many speeds; got {states=}"
        )
    return Layout(config.horizon, spec.action_dim, states, config.padding, Units(spec))


def samplers_of(
    config: Config, schedule: schedules.Schedule
) -> tuple[samplers.Sampler, samplers.Sampler | None]:
    """The sampler from noise, and the one from a warm start, if there is one."""
    make = functools.partial(trajectories.make_sampler, config)
    whole = make(schedule, steps=config.sample_steps)
    K, level = schedule.steps, config.warm_start
    if level is None:
        return whole, None
    if not 1 <= level < K:
        raise ValueError(
            f"warm_start must be a diffusion step of 1 to {K - 1}, got {level}"
        )
    steps = config.sample_steps
    fewer = None if steps is None else max(1, round(steps * (level + 1) / K))
    rest = schedules.Schedule(*(column[: level + 1] for column in schedule))
    return whole, make(rest, steps=fewer)


# Training -----------------------------------------------------------------------------


def trajectory_loss(
    params: Params, parts: Parts, batch: Float[Array, "B H D"], draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """mean of w_{h,d} (x0_hat - tau)^2, what is held being clean and no error."""
    config, layout = parts.config, parts.layout
    weights = trajectories.loss_weights(
        layout, config.action_weight, config.loss_discount
    )
    bc_loss = losses.denoising_loss(
        parts.schedule,
        functools.partial(parts.network.apply, params),
        batch,
        draws.k,
        draws.noise,
        parameterisation=trajectories.PREDICTS[config.predict],
        weights=weights,
        clamp=held(parts, batch),
    )
    return bc_loss, {"bc_loss": bc_loss}


def held(parts: Parts, values: Float[Array, "*B H D"]) -> Constraint:
    """The clamp of trajectories whose first state, and last with a goal, are known."""
    goal = bool(parts.config.goal)
    return trajectories.known_states(parts.layout, values.shape[-2], goal, values)


def init(parts: Parts, key: PRNGKeyArray) -> TrainState:
    """A fresh network."""
    model = trajectories.fresh(parts.network, parts.layout, parts.optimizer, key)
    return TrainState(jnp.zeros((), jnp.int32), model)


def sample_batch(
    parts: Parts, key: PRNGKeyArray, data: Dataset
) -> Float[Array, "B H D"]:
    """Windows of the data, as trajectories."""
    layout = parts.layout
    return layout.take(data, layout.rows(key, data, parts.config.batch_size))


def draw(parts: Parts, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    B, K = parts.config.batch_size, parts.schedule.steps
    return trajectories.draw(key, parts.layout, K, B)


def update_step(
    parts: Parts, state: TrainState, batch: Float[Array, "B H D"], draws: Draws
) -> tuple[TrainState, Metrics]:
    """One step of the network, and of its average where it is due."""
    inputs = parts, batch, draws
    model, metrics = descend(
        "planner", parts.optimizer, state.planner, trajectory_loss, *inputs
    )
    config = parts.config
    model = trajectories.averaged(
        model, state.step, config.ema_decay, config.ema_every, config.ema_start
    )
    return TrainState(state.step + 1, model), metrics


def learned(state: TrainState) -> Params:
    """The averaged parameters, which plan."""
    return state.planner.average


# Planning -----------------------------------------------------------------------------


def known(
    parts: Parts, observation: Float[Array, " O"], horizon: int
) -> Float[Array, "H D"]:
    """A trajectory with what is known of it: the first state, and the goal's."""
    layout, columns = parts.layout, parts.config.goal
    A, S = layout.actions, layout.states
    plan = jnp.zeros((horizon, layout.width))
    plan = plan.at[0, A:].set(observation[:S])
    if not columns:
        return plan
    return plan.at[-1, A:].set(layout.units.at_rest(observation, columns, S))


def chain(
    parts: Parts,
    learned: Params,
    observation: Float[Array, " O"],
    key: PRNGKeyArray,
    count: int = 1,
    guide: Guidance | None = None,
    horizon: int | None = None,
) -> Float[Array, "n N H D"]:
    """N plans from here in all of their making, from noise to what is carried out."""
    horizon = horizon or parts.plan_horizon
    draws = reverse.draw_chain(
        key, parts.sampler.draws, (count, horizon, parts.layout.width)
    )
    return parts.sampler.sample(
        functools.partial(parts.network.apply, learned),
        draws,
        guide,
        held(parts, known(parts, observation, horizon)),
        whole=True,
    )


def warm_chain(
    parts: Parts,
    learned: Params,
    last: Float[Array, "H D"],
    observation: Float[Array, " O"],
    key: PRNGKeyArray,
    count: int = 1,
    guide: Guidance | None = None,
) -> Float[Array, "n N H D"]:
    """The same from the last plan, noised; its noise is drawn like any other's."""
    assert parts.warmed is not None
    draws = reverse.draw_chain(key, parts.warmed.draws, (count, *last.shape))
    level = jnp.int32(parts.config.warm_start)
    again = jnp.broadcast_to(shifted(parts, last), (count, *last.shape))
    begin = process.forward_noise(parts.schedule, again, level, draws.start)
    return parts.warmed.sample(
        functools.partial(parts.network.apply, learned),
        draws._replace(start=begin),
        guide,
        held(parts, known(parts, observation, parts.plan_horizon)),
        whole=True,
    )


def plans(
    parts: Parts,
    learned: Params,
    carry: Carry,
    observation: Float[Array, " O"],
    key: PRNGKeyArray,
    count: int = 1,
    guide: Guidance | None = None,
) -> Float[Array, "2 N H D"]:
    """N plans from here, before the last denoising step and after it."""
    if parts.warmed is None:
        return chain(parts, learned, observation, key, count, guide)[-2:]
    return jax.lax.cond(
        carry.made > 0,
        lambda key: warm_chain(
            parts, learned, carry.plan, observation, key, count, guide
        )[-2:],
        lambda key: chain(parts, learned, observation, key, count, guide)[-2:],
        key,
    )


def shifted(parts: Parts, plan: Float[Array, "H D"]) -> Float[Array, "H D"]:
    """The plan of what is left to do, its last row repeated."""
    rows = jnp.arange(len(plan)) + parts.config.execute
    return plan[jnp.minimum(rows, len(plan) - 1)]


def forget(parts: Parts) -> Carry:
    """What is carried at the start of an episode."""
    if parts.warmed is None:
        return ()
    plan = jnp.zeros((parts.plan_horizon, parts.layout.width))
    return Last(plan, jnp.zeros(()))


def remember(parts: Parts, carry: Carry, plan: Float[Array, "H D"]) -> Carry:
    """What is carried after a plan."""
    return carry if parts.warmed is None else Last(plan, jnp.ones(()))


def propose(
    parts: Parts,
    learned: Params,
    carry: Carry,
    observation: Float[Array, " O"],
    key: PRNGKeyArray,
) -> tuple[Float[Array, "H D"], Carry]:
    """One plan, as it is sampled; or one that arrives early, and does not jump."""
    config = parts.config
    if not config.shorter and config.candidates == 1:
        plan = plans(parts, learned, carry, observation, key)[-1, 0]
        return plan, remember(parts, carry, plan)

    def sample(key: PRNGKeyArray, horizon: int) -> Array:
        count = config.candidates
        return chain(parts, learned, observation, key, count, horizon=horizon)[-1]

    # Deviation: the authors choose one horizon for a maze.
    horizons, largest = (*config.shorter, parts.plan_horizon), config.jump
    measure = functools.partial(jump, parts)
    plan = plan_lengths.first_believed(sample, measure, largest, horizons, key)
    return plan, carry


def jump(parts: Parts, plan: Float[Array, "h D"]) -> Float[Array, ""]:
    """How far a step of a plan is from its speeds, in the environment's units."""
    state = parts.layout.units.raw_state(plan[:, parts.layout.actions :])
    place, speed = jnp.split(state, 2, axis=1)
    return plan_lengths.largest_jump(place, speed, parts.config.time_step)


def waypoints(parts: Parts, plan: Float[Array, "H D"]) -> Float[Array, "h S"]:
    """The states of a plan from the second on; then its last position, at rest."""
    layout, count = parts.layout, parts.config.execute
    states = plan[1:, layout.actions :]
    raw = layout.units.raw_state(states[-1])
    half = layout.states // 2
    end = layout.units.state(raw.at[half:].set(0.0))
    behind = jnp.broadcast_to(end, (max(0, count - len(states)), layout.states))
    return jnp.concatenate([states[:count], behind])


def follow(
    parts: Parts,
    learned: Any,
    row: Float[Array, " S"],
    observation: Float[Array, " O"],
) -> Float[Array, " A"]:
    """The force (x* - x) + (v* - v), within the bounds of actions."""
    del learned
    units, S = parts.layout.units, parts.layout.states
    error = units.raw_state(row) - units.raw_observation(observation)[:S]
    force = units.action(error[: S // 2] + error[S // 2 :])
    return jnp.clip(force, *action_bounds(parts.spec))


def acting(parts: Parts, propose: Propose) -> Acting:
    """The policy that carries out plans: their actions, or with a goal their states."""
    config, A = parts.config, parts.layout.actions
    low, high = action_bounds(parts.spec)

    def act(learned: Any, carry: Carry, observations: Array, key: PRNGKeyArray):
        plan, carry = propose(learned, carry, observations[-1], key)
        if config.goal:
            return waypoints(parts, plan), carry
        # Deviation: the authors leave actions to the simulator, which clips them too.
        return jnp.clip(plan[: config.execute, :A], low, high), carry

    return Acting(
        act,
        functools.partial(forget, parts),
        follow=functools.partial(follow, parts) if config.goal else None,
    )


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds Diffuser; raises ValueError for settings out of range."""
    del given
    parts, bind = build(config, spec), functools.partial
    model = Planner(
        parts.layout,
        parts.schedule,
        config,
        bind(plans, parts),
        bind(chain, parts),
        bind(acting, parts),
        bind(remember, parts),
    )
    return Agent(
        init=bind(init, parts),
        sample_batch=bind(sample_batch, parts),
        draw=bind(draw, parts),
        update_step=bind(update_step, parts),
        learned=learned,
        prepare=parts.layout.require,
        acting=acting(parts, bind(propose, parts)),
        model=model,
    )
