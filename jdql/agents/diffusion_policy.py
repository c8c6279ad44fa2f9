"""Diffusion Policy: action chunks by denoising, carried out with a receding horizon.

"Diffusion Policy: Visuomotor Policy Learning via Action Diffusion", Chi et al., RSS
2023 and IJRR 2024, arXiv:2303.04137.  It clones: rewards play no part.

| paper | here |
|---|---|
| eq. 5, the loss of noise prediction on sequences of actions | `actor_loss` |
| eq. 4, denoising given the last observations | `plan` |
| receding horizon: T_p predicted, T_a of them carried out | `act` |
| section 3.1, CNN with FiLM, and time-series transformer | `NETWORKS` |

A sequence begins with the first observation seen: its action `observed - 1` is the one
for now, and the actions from there on are carried out.  Windows reach beyond an
episode's ends by as many steps as that needs, and are padded by its first and last.

The paper scales observations and actions to [-1, 1] (`scale_observations` and
`scale_actions` of the data, limits).  A copy of the network acts that averages its
parameters over the course of training (`optim.power_rule`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdql.agents.base import (
    NOTHING,
    Acting,
    Agent,
    Carry,
    Metrics,
    Stages,
    action_bounds,
)
from jdql.checks import at_least, one_of
from jdql.config import STATIC
from jdql.data import windows as layout
from jdql.data.dataset import Dataset
from jdql.data.sampling import windows
from jdql.diffusion import constraints, losses, reverse, samplers, schedules
from jdql.networks.temporal_layers import Film, Shift
from jdql.networks.temporal_unet import TemporalUnet, check_horizon, check_widths
from jdql.networks.transformer import ChunkTransformer, check_heads, decays
from jdql.optim import (
    Averaging,
    Model,
    adamw,
    descend,
    everything,
    follow,
    power_rule,
    start,
)
from jdql.types import (
    Array,
    Constraint,
    DataSpec,
    Float,
    Int,
    Params,
    PRNGKeyArray,
    Window,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors' for low-dimensional tasks with the CNN."""

    lr: float = 1e-4
    warmup: int = 500  # updates in which the rate rises; it begins at 0
    # The rate falls to 0 as half a cosine until this update; None: it stays.
    decay_steps: int | None = None
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    ema_power: float = 0.75
    ema_largest: float = 0.9999  # decay of the average
    batch_size: int = 256
    # windows
    observed: int = 2  # T_o, observations seen
    horizon: int = 16  # T_p, actions predicted, from the first observation seen on
    executed: int = 8  # T_a, actions carried out before the next plan
    # diffusion
    diffusion_steps: int = 100
    schedule: str = "cosine"
    variance: str = "posterior"
    # How observations are given: as a "condition" of the network; or "inpaint": they
    # are denoised too, behind the actions, and those seen are held.
    observations: str = "condition"
    # networks
    network: str = "unet"  # or "transformer"
    # of the U-Net
    widths: tuple[int, ...] = (256, 512, 1024)  # of its levels
    kernel: int = 5
    groups: int = 8
    modulation: str = "film"  # what the condition does to channels; or "shift"
    step_dim: int = 256
    # of the transformer
    layers: int = 8
    heads: int = 4
    width: int = 256
    dropout: float = dataclasses.field(default=0.01, metadata=STATIC)  # in training
    # acting
    sampler: str = "ancestral"
    sample_steps: int | None = None  # None: diffusion_steps
    unroll: int = 1  # steps of the chain laid out in a row

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(
            self,
            batch_size=64,
            horizon=4,
            executed=2,
            widths=(16,),
            kernel=3,
            step_dim=8,
            layers=1,
            width=16,
        )
        quick = dataclasses.replace(
            small, lr=2e-3, warmup=0, decay_steps=None, betas=(0.9, 0.999)
        )
        return dataclasses.replace(quick, diffusion_steps=5, sample_steps=None)


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Model  # its average acts


class Draws(NamedTuple):
    """The noise of one update; D is A, or A + O where observations are in-painted.

    `dropout` has a key for what is dropped out of the transformer, and is `()` for the
    U-Net.
    """

    k: Int[Array, " B"]
    noise: Float[Array, "B H D"]
    dropout: tuple[PRNGKeyArray, ...] = ()


class Told(NamedTuple):
    """A network, and how it is told of the observations.

    Attributes:
      network: `(x [*B, H, D], k, condition) -> [*B, H, D]`.
      condition: of observations `[*B, C, O]`.
      decays: which of its parameters decay.
      drops: whether it is told `deterministic=False` and a key in training.
    """

    network: nn.Module
    condition: Callable[[Array], Array | None]
    decays: Callable[[Params], Params]
    drops: bool = False


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    spec: DataSpec
    schedule: schedules.Schedule  # of the K diffusion steps
    told: Told
    sampler: samplers.Sampler
    optimizer: optax.GradientTransformation
    averaging: Averaging

    @property
    def size(self) -> int:
        """D, the numbers of a step of what is denoised."""
        inpaints = self.config.observations == "inpaint"
        return self.spec.action_dim + inpaints * self.spec.observation_dim


# Networks. ----------------------------------------------------------------------------


def flattened(observations: Float[Array, "*B C O"]) -> Float[Array, "*B E"]:
    """The observations one behind the other."""
    return observations.reshape(*observations.shape[:-2], -1)


def one_by_one(observations: Float[Array, "*B C O"]) -> Float[Array, "*B C O"]:
    """Each observation is a token."""
    return observations


def nothing(observations: Float[Array, "*B C O"]) -> None:
    """No condition: what is seen is part of what is denoised."""
    return None


def unet(config: Config) -> Told:
    """The CNN; all of its parameters decay."""
    check_horizon(config.horizon, len(config.widths))
    check_widths(config.widths, config.groups)
    modulation = {"film": Film, "shift": Shift}
    network = TemporalUnet(
        config.widths,
        config.step_dim,
        config.kernel,
        config.groups,
        one_of("modulation", config.modulation, modulation),
    )
    conditions = {"condition": flattened, "inpaint": nothing}
    condition = one_of("observations", config.observations, conditions)
    return Told(network, condition, everything)


def transformer(config: Config) -> Told:
    """The transformer; the kernels of its layers decay."""
    check_heads(config.width, config.heads)
    if config.observations != "condition":
        raise ValueError(
            f"the transformer has observations as its condition, got "
            f"observations={config.observations!r}: set 'condition', or network='unet'"
        )
    network = ChunkTransformer(
        config.layers, config.heads, config.width, dropout=config.dropout
    )
    return Told(network, one_by_one, decays, drops=config.dropout > 0)


NETWORKS = {"unet": unet, "transformer": transformer}


# Parts. -------------------------------------------------------------------------------


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    _check_steps(config)
    told = one_of("network", config.network, NETWORKS)(config)
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    optimizer = adamw(
        config.lr,
        config.decay_steps,
        config.weight_decay,
        warmup=config.warmup,
        betas=config.betas,
        decays=told.decays,
    )
    averaging = Averaging(power_rule(config.ema_power, config.ema_largest))
    sampler = _sampler(config, spec, schedule)
    return Parts(
        config,
        spec,
        schedule,
        told,
        sampler,
        optimizer,
        averaging,
    )


def _check_steps(config: Config) -> None:
    for name in ("observed", "horizon", "executed"):
        at_least(name, getattr(config, name))
    last = config.observed - 1 + config.executed
    if last > config.horizon:
        raise ValueError(
            f"actions {config.observed - 1} to {last - 1} of a sequence are to be "
            f"carried out, which needs a horizon of at least {last}, got "
            f"{config.horizon}: take a longer one, or lower observed or executed"
        )


def _sampler(
    config: Config, spec: DataSpec, schedule: schedules.Schedule
) -> samplers.Sampler:
    """The sampler of sequences, whose x0_hat obeys the bounds of the actions.

    DDIM is that of diffusers: on its own grid, and along directions that know of no
    bounds.
    """
    low, high = action_bounds(spec)
    if config.observations == "inpaint":
        # As the authors clip whatever they denoise: scaled observations are in [-1, 1].
        ones = jnp.ones(spec.observation_dim)
        low, high = jnp.concatenate([low, -ones]), jnp.concatenate([high, ones])
    theirs: dict[str, Any] = {"grid": schedules.leading_grid, "clip_direction": False}
    return samplers.make_sampler(
        schedule,
        config.sampler,
        config.sample_steps,
        variance=config.variance,
        constraint=constraints.clip_to(low, high),
        unroll=config.unroll,
        **(theirs if config.sampler == "ddim" else {}),
    )


def predict(
    parts: Parts,
    params: Params,
    seen: Float[Array, "*B C O"],
    dropout: tuple[PRNGKeyArray, ...] = (),
) -> Callable[[Array, Array], Array]:
    """The network for given observations, `(x [*B, H, D], k) -> [*B, H, D]`.

    With a key it drops out, as in training.
    """
    told, condition = parts.told, parts.told.condition(seen)
    training: dict[str, Any] = {}
    if dropout:
        training = {"deterministic": False, "rngs": {"dropout": dropout[0]}}
    return lambda x, k: told.network.apply(params, x, k, condition, **training)


def clamp(parts: Parts, seen: Float[Array, "*B C O"]) -> Constraint:
    """Holds the observations seen, where they are part of what is denoised."""
    if parts.config.observations != "inpaint":
        return constraints.unconstrained
    C, A, H = parts.config.observed, parts.spec.action_dim, parts.config.horizon
    mask = np.zeros((H, parts.size), bool)
    mask[:C, A:] = True
    rest = [(0, 0)] * (seen.ndim - 2)
    values = jnp.pad(seen, [*rest, (0, H - C), (A, 0)])
    return constraints.inpaint(mask, values)


# Training. ----------------------------------------------------------------------------


def sequences(parts: Parts, batch: Window) -> Float[Array, "B H D"]:
    """What is denoised: actions, and observations where they are in-painted."""
    if parts.config.observations != "inpaint":
        return batch.action
    return jnp.concatenate([batch.action, batch.observation], axis=-1)


def actor_loss(
    params: Params, parts: Parts, batch: Window, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """Eq. 5: predict the noise in the data's sequences, padding included."""
    seen = batch.observation[:, : parts.config.observed]
    bc_loss = losses.denoising_loss(
        parts.schedule,
        predict(parts, params, seen, draws.dropout),
        sequences(parts, batch),
        draws.k,
        draws.noise,
        clamp=clamp(parts, seen),
    )
    return bc_loss, {"bc_loss": bc_loss}


def prepare(parts: Parts, dataset: Dataset) -> Dataset:
    """The dataset, if it has windows.

    Raises:
      ValueError: every episode is too short.
    """
    layout.require(dataset.episode_ends, **_window(parts.config))
    return dataset


def _window(config: Config) -> dict[str, Any]:
    """The size of windows, and how far they may reach beyond an episode."""
    return {
        "length": config.horizon,
        "before": config.observed - 1,
        "after": config.executed - 1,
    }


def init(parts: Parts, key: PRNGKeyArray) -> TrainState:
    """A fresh network; the average is a copy."""
    config = parts.config
    seen = jnp.zeros((1, config.observed, parts.spec.observation_dim))
    x = jnp.zeros((1, config.horizon, parts.size))
    k, condition = jnp.zeros((), int), parts.told.condition(seen)
    params = parts.told.network.init(key, x, k, condition)
    actor = start(params, parts.optimizer, averaged=True)
    return TrainState(jnp.zeros((), jnp.int32), actor)


def draw(parts: Parts, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    k_key, noise_key, dropout_key = jax.random.split(key, 3)
    config = parts.config
    B, K = config.batch_size, config.diffusion_steps
    return Draws(
        k=jax.random.randint(k_key, (B,), 0, K),
        noise=jax.random.normal(noise_key, (B, config.horizon, parts.size)),
        dropout=(dropout_key,) if parts.told.drops else (),
    )


def update_step(
    parts: Parts, state: TrainState, batch: Window, draws: Draws
) -> tuple[TrainState, Metrics]:
    """One step down the loss, and one of the average behind it."""
    inputs = parts, batch, draws
    actor, metrics = descend("actor", parts.optimizer, state.actor, actor_loss, *inputs)
    actor = follow(actor, parts.averaging, count=state.step)
    return TrainState(state.step + 1, actor), metrics


def learned(state: TrainState) -> Params:
    """The averaged network."""
    return state.actor.average


# Acting. ------------------------------------------------------------------------------


def plan(
    parts: Parts,
    learned: Params,
    seen: Float[Array, "*B C O"],
    draws: reverse.ChainDraws,
) -> Float[Array, "*B H D"]:
    """Eq. 4: sequences for the observations seen, from the noise `[*B, H, D]`."""
    network = predict(parts, learned, seen)
    return parts.sampler.sample(network, draws, clamp=clamp(parts, seen))


def act(
    parts: Parts,
    learned: Params,
    carry: Carry,
    observations: Float[Array, "C O"],
    key: PRNGKeyArray,
) -> tuple[Float[Array, "h A"], Carry]:
    """The actions of a plan from now on, as many as are carried out."""
    shape = parts.config.horizon, parts.size
    draws = reverse.draw_chain(key, parts.sampler.draws, shape)
    sequence = plan(parts, learned, observations, draws)
    now = parts.config.observed - 1
    actions = sequence[now : now + parts.config.executed]
    return actions[:, : parts.spec.action_dim], carry


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds Diffusion Policy; raises ValueError for settings out of range."""
    del given
    parts, bind = build(config, spec), functools.partial
    return Agent(
        init=bind(init, parts),
        sample_batch=bind(
            windows,
            batch_size=config.batch_size,
            **_window(config),
            padding=layout.repeat,
        ),
        draw=bind(draw, parts),
        update_step=bind(update_step, parts),
        learned=learned,
        prepare=bind(prepare, parts),
        acting=Acting(bind(act, parts), history=config.observed),
    )
