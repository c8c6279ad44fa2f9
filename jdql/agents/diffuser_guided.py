"""Diffuser's return-guided planning: a value of noisy trajectories moves the plans.

Janner et al., ICML 2022, algorithm 1 and section 3.2.  The planner is a run of its own,
`--config.given.planner=FOLDER`, and stays as it is.  This stage learns the return that
follows a noised trajectory, and acts by plans that are moved up its gradient before
each denoising step.

| paper | here |
|---|---|
| J_phi, the return of a noisy trajectory | `value_loss`, `episodes.returns_to_go` |
| algorithm 1, guided sampling | `propose`, `guidance.diffuser` |

The defaults are the authors' for locomotion.  Their gradient is multiplied by the
variance of the step, whatever their setting's name says of a deviation.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents import trajectories
from jdql.agents.base import Agent, Carry, Given, Metrics, Stages
from jdql.agents.trajectories import Draws, Labelled
from jdql.checks import at_least
from jdql.data.dataset import Dataset
from jdql.data.episodes import returns_to_go
from jdql.diffusion import guidance, process
from jdql.networks.temporal_value import TemporalValue, check_value_widths
from jdql.optim import Model, adam, descend
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray

GIVEN = {"planner": ("diffuser",)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors' for locomotion."""

    # value
    discount: float = 0.997
    termination_penalty: float = -100.0  # part of a true end's reward
    lr: float = 2e-4
    batch_size: int = 64  # two accumulated batches of 32
    ema_decay: float = 0.995
    ema_every: int = 10
    ema_start: int = 2000
    # network
    dim: int = 32
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    kernel: int = 5
    # acting
    candidates: int = 64  # plans, of which the best is carried out
    scale: float = 0.1  # of the gradient
    guide_steps: int = 2  # moves before each denoising step; the authors' n_guide_steps
    stop: int = 2  # diffusion steps below it are not guided; their t_stopgrad

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(
            self, batch_size=32, dim=32, dim_mults=(1,), kernel=3
        )
        quick = dataclasses.replace(small, lr=2e-3, ema_start=10, candidates=16)
        return dataclasses.replace(quick, termination_penalty=0.0, guide_steps=1)


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    critic: Model  # the value; what guides is its average


class Batch(NamedTuple):
    """Trajectories, and the returns from their first steps on."""

    trajectory: Float[Array, "B H D"]
    value: Float[Array, " B"]


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    planner: Given
    network: TemporalValue
    optimizer: optax.GradientTransformation


def build(config: Config, given: Stages) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    at_least("candidates", config.candidates)
    at_least("guide_steps", config.guide_steps)
    planner = given["planner"]
    own = planner.agent.model.config
    if own.goal or own.plan_horizon not in (None, own.horizon):
        raise ValueError(
            "plans are guided by a value of the horizon that it was trained on: give a "
            f"planner without goal and plan_horizon; it has {own.goal=} and "
            f"{own.plan_horizon=}"
        )
    widths = tuple(config.dim * mult for mult in config.dim_mults)
    check_value_widths(widths, 8)
    network = TemporalValue(widths, config.dim, config.kernel)
    return Parts(config, planner, network, adam(config.lr))


# Training -----------------------------------------------------------------------------


def value_loss(
    params: Params, parts: Parts, batch: Batch, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """mean (J(tau_k, k) - R)^2, the first state being clean as it will be in plans."""
    planner, plan = parts.planner.agent.model, batch.trajectory
    clamp = trajectories.known_states(planner.layout, plan.shape[-2], False, plan)
    noisy = process.forward_noise(planner.schedule, plan, draws.k, draws.noise)
    value = parts.network.apply(params, clamp(noisy), draws.k)
    metrics = {"value_mean": jnp.mean(value), "return_mean": jnp.mean(batch.value)}
    return jnp.mean(jnp.square(value - batch.value)), metrics


def init(parts: Parts, key: PRNGKeyArray) -> TrainState:
    """A fresh network."""
    layout = parts.planner.agent.model.layout
    model = trajectories.fresh(parts.network, layout, parts.optimizer, key)
    return TrainState(jnp.zeros((), jnp.int32), model)


def prepare(parts: Parts, dataset: Dataset) -> Labelled:
    """Labels every transition with the return that follows it."""
    config = parts.config
    layout = parts.planner.agent.model.layout
    penalty = float(config.termination_penalty)
    value = returns_to_go(dataset, float(config.discount), penalty=penalty)
    return Labelled(layout.require(dataset), value)


def sample_batch(parts: Parts, key: PRNGKeyArray, data: Labelled) -> Batch:
    """Windows of the data, as trajectories, with the returns that follow."""
    layout = parts.planner.agent.model.layout
    rows = layout.rows(key, data.dataset, parts.config.batch_size)
    return Batch(layout.take(data.dataset, rows), data.label[rows.row[:, 0]])


def draw(parts: Parts, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    planner, B = parts.planner.agent.model, parts.config.batch_size
    return trajectories.draw(key, planner.layout, planner.schedule.steps, B)


def update_step(
    parts: Parts, state: TrainState, batch: Batch, draws: Draws
) -> tuple[TrainState, Metrics]:
    """One step of the value, and of its average where it is due."""
    model, metrics = descend(
        "value", parts.optimizer, state.critic, value_loss, parts, batch, draws
    )
    config = parts.config
    model = trajectories.averaged(
        model, state.step, config.ema_decay, config.ema_every, config.ema_start
    )
    return TrainState(state.step + 1, model), metrics


def learned(state: TrainState) -> Params:
    """The averaged parameters, which guide."""
    return state.critic.average


# Planning -----------------------------------------------------------------------------


def gradient(parts: Parts, learned: Params, x: Array, k: Array) -> Array:
    """Of the value of noisy trajectories `[*B, H, D]`, in themselves."""
    return jax.grad(lambda x: jnp.sum(parts.network.apply(learned, x, k)))(x)


def guide(parts: Parts, learned: Params) -> guidance.Guide:
    """tau <- tau + scale Sigma_k grad J(tau, k), some times before each step."""
    config = parts.config
    return guidance.diffuser(
        functools.partial(gradient, parts, learned),
        config.scale,
        repeats=config.guide_steps,
        stop=config.stop,
    )


def propose(
    parts: Parts,
    learned: Params,
    carry: Carry,
    observation: Float[Array, " O"],
    key: PRNGKeyArray,
) -> tuple[Float[Array, "H D"], Carry]:
    """The best of N guided plans, by their value before the last denoising step."""
    planner, known = parts.planner.agent.model, parts.planner.learned
    before, plans = planner.plans(
        known,
        carry,
        observation,
        key,
        count=parts.config.candidates,
        guide=guide(parts, learned),
    )
    # That is what the authors' last guide step returns.
    value = parts.network.apply(learned, before, jnp.zeros((), jnp.int32))
    best = plans[jnp.argmax(value)]
    return best, planner.remember(carry, best)


def make(config: Config, spec: DataSpec, given: Stages) -> Agent:
    """Builds the guided stage of Diffuser.

    Args:
      config: settings.
      spec: sizes and action bounds of the data.
      given: `planner`, whose model is a `diffuser.Planner`.

    Raises:
      ValueError: for settings out of range, or a planner that cannot be guided.
    """
    del spec
    parts, bind = build(config, given), functools.partial
    return Agent(
        init=bind(init, parts),
        sample_batch=bind(sample_batch, parts),
        draw=bind(draw, parts),
        update_step=bind(update_step, parts),
        learned=learned,
        prepare=bind(prepare, parts),
        acting=parts.planner.agent.model.acting(bind(propose, parts)),
    )
