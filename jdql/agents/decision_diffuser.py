"""Decision Diffuser: plans of states that answer to a return (Ajay et al. 2023).

"Is Conditional Generative Modeling all you need for Decision-Making?", ICLR 2023,
arXiv:2211.15657.  A diffusion of the states alone, given the return that follows; what
leads from one state to the next is read off by inverse dynamics.

| paper | here |
|---|---|
| eq. 5, trajectories of states | `Batch.state` |
| eq. 6, a_t = f(s_t, s_{t+1}) | `inverse_loss`, `follow` |
| eq. 7, guidance without a classifier | `plans`, `guidance.classifier_free_stacked` |
| eq. 8, the loss of both networks | `planner_loss`, `inverse_loss` |
| section 3.3, conditions composed, and "not" | `plans` with several returns |
| section 3.2, sampling at a low temperature | `Config.temperature`, `plans` |
| algorithm 1, the last C states held | `held`, `Config.history` |

A return label is the discounted reward to the end of the episode over `returns_scale`;
one that is asked for, `target_return`, is in the same units.

The defaults are the authors' for locomotion; batches of 64 are their two accumulated
ones of 32.  Their code has one optimiser for both networks: Adam goes entry by entry,
so that two are the same.  `network="dit"` has CleanDiffuser's transformer in the place
of the U-Net.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdql.agents import trajectories
from jdql.agents.base import (
    NOTHING,
    Acting,
    Agent,
    Metrics,
    Stages,
    action_bounds,
    blank,
    followed,
)
from jdql.agents.trajectories import Labelled, Layout, Units
from jdql.checks import at_least, finite, one_of
from jdql.data.dataset import Dataset
from jdql.diffusion import (
    constraints,
    guidance,
    losses,
    reverse,
    samplers,
    schedules,
)
from jdql.networks.dit import DiT
from jdql.networks.mlp import MLP
from jdql.networks.temporal_unet import TemporalUnet
from jdql.networks.transformer import check_heads
from jdql.optim import Model, Scalar, adam, descend, start
from jdql.types import Array, Constraint, DataSpec, Float, Int, Params, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors' for locomotion."""

    # trajectories
    horizon: int = 100
    history: int = 1  # C, states up to now at the start of a plan
    padding: bool = True  # windows go on behind an episode's end
    # returns
    target_return: float = 0.9  # asked for when acting; the paper's text has 0.95
    guidance: float = 1.2  # weight w: 0 ignores the return, 1 is plain conditioning
    dropout: float = 0.25  # share of windows that are trained on without their return
    discount: float = 0.99
    termination_penalty: float = -100.0  # part of a true end's reward
    returns_scale: float | None = 400.0  # None: the greatest return of the data
    # loss
    loss_discount: float = 1.0
    lr: float = 2e-4
    batch_size: int = 64
    ema_decay: float = 0.995
    ema_every: int = 10
    ema_start: int = 2000
    # diffusion
    diffusion_steps: int = 200
    schedule: str = "cosine"
    predict: str = "epsilon"  # or "x0"
    clip: bool = True  # estimates of x_0 to [-1, 1], for data of that range
    # networks
    network: str = "unet"  # or "dit"
    dim: int = 128  # of the embeddings, and the unit of the U-Net's widths
    # of the U-Net
    dim_mults: tuple[int, ...] = (1, 4, 8)
    kernel: int = 5
    # of the DiT; CleanDiffuser's sizes for this system (Dong et al. 2024)
    layers: int = 2
    heads: int = 10
    width: int = 320
    # of the inverse dynamics
    hidden: tuple[int, ...] = (256, 256)
    # acting
    temperature: float = 0.5  # multiplies all noise of a chain
    sampler: str = "ancestral"
    sample_steps: int | None = None  # None: diffusion_steps
    execute: int = 1  # steps of a plan before the next one

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(
            self, horizon=4, batch_size=32, dim=16, kernel=3, layers=1, heads=2
        )
        quick = dataclasses.replace(
            small, dim_mults=(1,), width=16, hidden=(32, 32), lr=2e-3
        )
        labels = dataclasses.replace(quick, termination_penalty=0.0, returns_scale=1.0)
        return dataclasses.replace(
            labels,
            history=1,
            diffusion_steps=10,
            sample_steps=None,
            ema_start=10,
            execute=min(self.execute, 3),
        )


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    planner: Model  # what plans is its average
    inverse: Model  # and what acts is the average of this


class Learned(NamedTuple):
    """What acts: the averaged parameters."""

    planner: Params
    inverse: Params


class Batch(NamedTuple):
    """Windows, and the return that follows the C-th state of each."""

    state: Float[Array, "B H O"]
    action: Float[Array, "B H A"]
    label: Float[Array, " B"]


class Draws(NamedTuple):
    """The noise of one update."""

    k: Int[Array, " B"]  # diffusion steps
    noise: Float[Array, "B H O"]
    coin: Float[Array, " B"]  # uniform; below `dropout` the return is dropped


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    spec: DataSpec
    layout: Layout  # of windows, whose states are diffused
    network: nn.Module
    inverse: MLP
    schedule: schedules.Schedule
    sampler: samplers.Sampler
    optimizer: optax.GradientTransformation


class Planner(NamedTuple):
    """What others may do with the system; `learned` is what it has learned.

    Attributes:
      plans: `(learned, seen [C, O], key, count, returns, weights) -> [count, H, O]`.
      follow: `(learned, state [O], observation [O]) -> action [A]`.
      config: its settings.
    """

    plans: Callable[..., Array]
    follow: Callable[[Learned, Array, Array], Array]
    config: Config


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    check(config)
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    O, A = spec.observation_dim, spec.action_dim
    return Parts(
        config,
        spec,
        Layout(config.horizon, A, O, config.padding, Units(spec), config.history),
        one_of("network", config.network, NETWORKS)(config),
        MLP(config.hidden, A, nn.relu),
        schedule,
        trajectories.make_sampler(config, schedule, config.sample_steps),
        adam(config.lr),
    )


def embed(config: Config) -> MLP:
    """The embedding of a return."""
    return MLP((config.dim, 4 * config.dim), config.dim)


def unet(config: Config) -> TemporalUnet:
    """The authors' network."""
    return trajectories.temporal_unet(config, config.horizon, embed=embed(config))


def dit(config: Config) -> DiT:
    """The transformer in its place."""
    check_heads(config.width, config.heads)
    sizes = config.width, config.heads, config.layers, config.dim
    return DiT(*sizes, embed=embed(config))


NETWORKS = {"unet": unet, "dit": dit}


def check(config: Config) -> None:
    """Refuses settings that cannot be; a float may be traced, and then passes."""
    at_least("history", config.history)
    at_least("execute", config.execute)
    left = at_least("horizon", config.horizon, 2) - config.history
    if config.execute > left:
        raise ValueError(
            f"a plan of {config.horizon} states, of which {config.history} are known, "
            f"leads {left} steps on: plan more states or take execute={config.execute} "
            "and history down"
        )
    finite(config, "guidance", "target_return", "temperature")


# Training -----------------------------------------------------------------------------


def held(parts: Parts, values: Float[Array, "*B H O"]) -> Constraint:
    """The clamp of trajectories whose first C states are known."""
    known = np.arange(parts.config.horizon)[:, None] < parts.config.history
    return constraints.inpaint(known, values)


def planner_loss(
    params: Params, parts: Parts, batch: Batch, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """Half the mean of w_h (eps - eps_hat)^2, known states being clean and no error.

    The mean is over all H states, those that are known included: the authors give the
    first one a weight of 0.  w_h is loss_discount^h over its mean.
    """
    weights = parts.config.loss_discount ** jnp.arange(parts.config.horizon)
    keep = (draws.coin >= parts.config.dropout).astype(jnp.float32)

    def predict(x: Array, k: Array) -> Array:
        return parts.network.apply(params, x, k, batch.label[:, None], keep)

    bc_loss = losses.denoising_loss(
        parts.schedule,
        predict,
        batch.state,
        draws.k,
        draws.noise,
        parameterisation=trajectories.PREDICTS[parts.config.predict],
        weights=(weights / weights.mean())[None],
        clamp=held(parts, batch.state),
    )
    return bc_loss / 2, {"bc_loss": bc_loss}


def inverse_loss(
    params: Params, parts: Parts, batch: Batch
) -> tuple[Float[Array, ""], Metrics]:
    """Half the mean of (a_t - f(s_t, s_{t+1}))^2, over all pairs from now on.

    As in the authors' code, pairs behind the end of an episode are among them.
    """
    now = parts.config.history - 1
    state, following = batch.state[:, now:-1], batch.state[:, now + 1 :]
    found = parts.inverse.apply(params, jnp.concatenate([state, following], axis=-1))
    error = jnp.mean(jnp.square(batch.action[:, now:-1] - found))
    return error / 2, {"inverse_error": error}


def init(parts: Parts, key: PRNGKeyArray) -> TrainState:
    """Fresh networks."""
    planner_key, inverse_key = jax.random.split(key)
    observation, _ = blank(parts.spec)
    plan = jnp.zeros((1, parts.config.horizon, parts.spec.observation_dim))
    step = jnp.zeros((), jnp.int32)
    planner = parts.network.init(planner_key, plan, step, jnp.zeros((1, 1)))
    pair = jnp.concatenate([observation, observation], axis=-1)
    return TrainState(
        step,
        start(planner, parts.optimizer, averaged=True),
        start(parts.inverse.init(inverse_key, pair), parts.optimizer, averaged=True),
    )


def prepare(parts: Parts, dataset: Dataset) -> Labelled:
    """Labels every transition with the return that follows it; see `return_labels`.

    A target far outside the labels is warned of.
    """
    config, dataset = parts.config, parts.layout.require(dataset)
    scale = None if config.returns_scale is None else float(config.returns_scale)
    label = trajectories.return_labels(
        dataset, float(config.discount), float(config.termination_penalty), scale
    )
    trajectories.warn_of_target(float(config.target_return), label)
    return Labelled(dataset, label)


def sample_batch(parts: Parts, key: PRNGKeyArray, data: Labelled) -> Batch:
    """Windows of the data, with their labels."""
    config, layout, A = parts.config, parts.layout, parts.spec.action_dim
    rows = layout.rows(key, data.dataset, config.batch_size)
    window = layout.take(data.dataset, rows)
    label = data.label[rows.row[:, config.history - 1]]
    return Batch(window[..., A:], window[..., :A], label)


def draw(parts: Parts, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    k_key, noise_key, coin_key = jax.random.split(key, 3)
    B, H, O = parts.config.batch_size, parts.config.horizon, parts.spec.observation_dim
    return Draws(
        k=jax.random.randint(k_key, (B,), 0, parts.schedule.steps),
        noise=jax.random.normal(noise_key, (B, H, O)),
        coin=jax.random.uniform(coin_key, (B,)),
    )


def update_step(
    parts: Parts, state: TrainState, batch: Batch, draws: Draws
) -> tuple[TrainState, Metrics]:
    """One step of both networks, and of their averages where they are due."""
    config, optimizer = parts.config, parts.optimizer
    average = functools.partial(
        trajectories.averaged,
        step=state.step,
        decay=config.ema_decay,
        every=config.ema_every,
        start=config.ema_start,
    )
    planner, plan_metrics = descend(
        "planner", optimizer, state.planner, planner_loss, parts, batch, draws
    )
    inverse, metrics = descend(
        "inverse", optimizer, state.inverse, inverse_loss, parts, batch
    )
    new_state = TrainState(state.step + 1, average(planner), average(inverse))
    return new_state, {**plan_metrics, **metrics}


def learned(state: TrainState) -> Learned:
    """The averaged parameters."""
    return Learned(state.planner.average, state.inverse.average)


# Acting -------------------------------------------------------------------------------


def plans(
    parts: Parts,
    learned: Learned,
    seen: Float[Array, "C O"],
    key: PRNGKeyArray,
    count: int = 1,
    returns: Sequence[Scalar] | None = None,
    weights: Sequence[Scalar] | None = None,
) -> Float[Array, "N H O"]:
    """N plans that begin with the last C states; see `denoise`.

    Args:
      parts: of the system.
      learned: by it.
      seen: the last C observations, the current one last.
      key: used once.
      count: N.
      returns: what the plans answer to together; `target_return` alone where None.
      weights: of each, negative for "not"; `guidance` for each where None.
    """
    config = parts.config
    asked = (config.target_return,) if returns is None else returns
    by = (config.guidance,) * len(asked) if weights is None else weights
    shape = (count, config.horizon, parts.spec.observation_dim)
    draws = reverse.draw_chain(key, parts.sampler.draws, shape)
    return denoise(parts, learned, seen, draws, asked, by)


def denoise(
    parts: Parts,
    learned: Learned,
    seen: Float[Array, "C O"],
    draws: reverse.ChainDraws,
    returns: Sequence[Scalar],
    weights: Sequence[Scalar],
) -> Float[Array, "N H O"]:
    """The plans of a chain whose noise is `temperature` times the draws.

    Noise is predicted as eps_u + sum_i w_i (eps(y_i) - eps_u), u without a return, and
    the estimate of x_0 that follows is clipped.

    Raises:
      ValueError: not as many weights as returns.
    """
    config, shape = parts.config, draws.start.shape
    values = jnp.zeros(shape[1:]).at[: config.history].set(seen)
    return parts.sampler.sample(
        stacked(parts, learned.planner, returns),
        jax.tree.map(lambda noise: config.temperature * noise, draws),
        guidance.classifier_free_stacked(*weights),
        held(parts, values),
    )


def stacked(
    parts: Parts, params: Params, returns: Sequence[Scalar]
) -> Callable[[Array, Array], Array]:
    """The network of `[1 + n, N, H, O]`: without a return, and with each of n."""
    condition = jnp.stack([jnp.zeros(()), *map(jnp.float32, returns)])[:, None]
    keep = jnp.ones(condition.shape).at[0].set(0.0)

    def predict(x: Array, k: Array) -> Array:
        each = x.shape[:2]
        told = jnp.broadcast_to(condition, each)[..., None]
        return parts.network.apply(params, x, k, told, jnp.broadcast_to(keep, each))

    return predict


def follow(
    parts: Parts,
    learned: Learned,
    state: Float[Array, " O"],
    observation: Float[Array, " O"],
) -> Float[Array, " A"]:
    """The action f(s, s') that leads on to a state, within its bounds."""
    pair = jnp.concatenate([observation, state])
    # Deviation: the authors leave actions to the simulator, which clips them too.
    return jnp.clip(
        parts.inverse.apply(learned.inverse, pair), *action_bounds(parts.spec)
    )


def acting(parts: Parts) -> Acting:
    """Plans, and aims at the states of the plan in turn."""
    C, h = parts.config.history, parts.config.execute

    def plan(learned: Learned, observations: Array, key: PRNGKeyArray) -> Array:
        return plans(parts, learned, observations, key)[0, C : C + h]

    return followed(plan, functools.partial(follow, parts), h, C)


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds Decision Diffuser; raises ValueError for settings out of range."""
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
        model=Planner(bind(plans, parts), bind(follow, parts), config),
    )
