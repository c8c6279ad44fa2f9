"""What planners have in common: trajectories of actions and states, windows of data.

A trajectory `[H, A + S]` has a row `[action, state]` for each of H steps; its state is
the first S numbers of an observation, all of them or those without the goal.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdql.checks import one_of
from jdql.data import sampling, windows
from jdql.data.dataset import Dataset
from jdql.data.episodes import returns_to_go
from jdql.data.windows import Rows
from jdql.diffusion import constraints, process, samplers, schedules
from jdql.networks.temporal_unet import TemporalUnet, check_horizon, check_widths
from jdql.optim import Averaging, Model, Scalar, follow, start
from jdql.types import Array, Constraint, DataSpec, Float, Int, PRNGKeyArray

# What the network of a planner may predict, by the name that settings have for it.
PREDICTS = {"epsilon": process.EPSILON, "x0": process.X0}


class Units(NamedTuple):
    """From the units of the data to the environment's, and back, of whole vectors.

    Where a spec has no scaling, they are the same.
    """

    spec: DataSpec

    def raw_observation(self, observation: Array) -> Array:
        """`[*B, O]` in the environment's units."""
        known = self.spec.scaling
        return observation if known is None else known.observation.inverse(observation)

    def observation(self, raw: Array) -> Array:
        """`[*B, O]` in those of the data."""
        known = self.spec.scaling
        return raw if known is None else known.observation.forward(raw)

    def action(self, raw: Array) -> Array:
        """`[*B, A]` in those of the data."""
        known = self.spec.scaling
        return raw if known is None else known.action.forward(raw)

    def raw_state(self, state: Float[Array, "*B S"]) -> Float[Array, "*B S"]:
        """The first S numbers of an observation, in the environment's units."""
        return self.raw_observation(self._whole(state))[..., : state.shape[-1]]

    def state(self, raw: Float[Array, "*B S"]) -> Float[Array, "*B S"]:
        """The first S numbers of an observation, in the units of the data."""
        return self.observation(self._whole(raw))[..., : raw.shape[-1]]

    def at_rest(
        self, observation: Float[Array, "*B O"], columns: tuple[int, ...], states: int
    ) -> Float[Array, "*B S"]:
        """The state that an observation's goal is at rest in, in the data's units.

        Its first numbers are those in `columns`, the others 0 in the environment's
        units.
        """
        raw = self.raw_observation(observation)
        still = jnp.zeros((*raw.shape[:-1], states))
        goal = raw[..., np.array(columns, int)]
        return self.state(still.at[..., : len(columns)].set(goal))

    def _whole(self, state: Array) -> Array:
        missing = self.spec.observation_dim - state.shape[-1]
        return jnp.pad(state, [(0, 0)] * (state.ndim - 1) + [(0, missing)])


def state_size(states: int | None, goal: tuple[int, ...], spec: DataSpec) -> int:
    """S, the numbers of a state.

    Args:
      states: of an observation's numbers, the first ones; None: all.
      goal: columns of an observation that hold the goal of as many first ones.
      spec: of the data.

    Raises:
      ValueError: observations do not have them.
    """
    O, S = spec.observation_dim, states
    if S is not None and not 1 <= S <= O:
        raise ValueError(
            f"{states=}, but observations have {O} numbers: states must be 1 to {O}"
        )
    S = O if S is None else S
    if len(goal) > S or any(not 0 <= column < O for column in goal):
        raise ValueError(
            f"{goal=} must name columns of the {O} of an observation, at most as many "
            "as a state has"
        )
    return S


class Layout(NamedTuple):
    """What a trajectory is made of.

    Attributes:
      horizon: H, its steps.
      actions: A, the numbers of an action, which come first in a row.
      states: S, those of a state.
      padding: whether windows of the data may go on behind the end of their episode,
        with zeros in the environment's units for actions and states.
      units: of the data.
      history: C, states up to now at the start of a window; those that lie before the
        start of the episode are its first state, as for who acts.
    """

    horizon: int
    actions: int
    states: int
    padding: bool
    units: Units
    history: int = 1

    @property
    def width(self) -> int:
        """A + S."""
        return self.actions + self.states

    @property
    def reach(self) -> dict[str, int]:
        """How far a window may go beyond its episode; the C-th state never does."""
        after = self.horizon - self.history if self.padding else 0
        return {"before": self.history - 1, "after": after}

    def require(self, dataset: Dataset) -> Dataset:
        """The dataset, if it has windows; see `windows.require`."""
        windows.require(dataset.episode_ends, self.horizon, **self.reach)
        return dataset

    def rows(self, key: PRNGKeyArray, dataset: Dataset, batch_size: int) -> Rows:
        """Where B windows lie, uniformly among all."""
        sizes = batch_size, self.horizon
        return sampling.window_rows(key, dataset.episode_ends, *sizes, **self.reach)

    def take(self, dataset: Dataset, rows: Rows) -> Float[Array, "B H D"]:
        """The trajectories of these windows, D = A + S."""
        nothing = jnp.zeros(self.units.spec.observation_dim)
        still = jnp.zeros(self.actions)
        pad = windows.zero(self.units.observation(nothing), self.units.action(still))
        before = jnp.cumsum(rows.valid, axis=-1) == 0
        kept = rows._replace(valid=rows.valid | before)
        window = pad(windows.take(dataset, kept))
        state = window.observation[..., : self.states]
        return jnp.concatenate([window.action, state], axis=-1)


class Labelled(NamedTuple):
    """A dataset, and a label of each of its transitions, such as a return."""

    dataset: Dataset
    label: Any  # [N]


class Draws(NamedTuple):
    """The noise of one update of a network of noisy trajectories."""

    k: Int[Array, " B"]  # diffusion steps
    noise: Float[Array, "B H D"]


def draw(key: PRNGKeyArray, layout: Layout, steps: int, batch_size: int) -> Draws:
    """The noise of B trajectories, at diffusion steps of 0 to `steps` - 1."""
    k_key, noise_key = jax.random.split(key)
    shape = (batch_size, layout.horizon, layout.width)
    return Draws(
        k=jax.random.randint(k_key, (batch_size,), 0, steps),
        noise=jax.random.normal(noise_key, shape),
    )


def fresh(
    network: nn.Module,
    layout: Layout,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
) -> Model:
    """A network of noisy trajectories before its first update, with its average."""
    blank = jnp.zeros((1, layout.horizon, layout.width))
    params = network.init(key, blank, jnp.zeros((), jnp.int32))
    return start(params, optimizer, averaged=True)


def temporal_unet(config: Any, *horizons: int, **parts: Any) -> TemporalUnet:
    """The U-Net that the settings of a planner name.

    Args:
      config: with the fields `dim`, `dim_mults` and `kernel`.
      *horizons: of the trajectories that it shall denoise.
      **parts: further fields of the network.

    Raises:
      ValueError: it has no such widths, or cannot halve a horizon.
    """
    widths = tuple(config.dim * mult for mult in config.dim_mults)
    check_widths(widths, 8)
    for horizon in horizons:
        check_horizon(horizon, len(widths))
    return TemporalUnet(widths, config.dim, config.kernel, **parts)


def make_sampler(
    config: Any, schedule: schedules.Schedule, steps: int | None
) -> samplers.Sampler:
    """The sampler that the settings of a planner name.

    Args:
      config: with the fields `sampler`; `predict`, a key of
        `PREDICTS`; and `clip`, whether estimates of x_0 are kept in
        [-1, 1].
      schedule: of the chain.
      steps: as in `samplers.make_sampler`.

    Raises:
      ValueError: there is no such sampler or parameterisation, or not so many steps.
    """
    bounds = constraints.clip_to(jnp.array(-1.0), jnp.array(1.0))
    return samplers.make_sampler(
        schedule,
        config.sampler,
        steps,
        constraint=bounds if config.clip else constraints.unconstrained,
        parameterisation=one_of("predict", config.predict, PREDICTS),
    )


def known_states(
    layout: Layout, horizon: int, goal: bool, values: Float[Array, "*B H D"]
) -> Constraint:
    """The clamp that holds the first state, and the last one where it is a goal.

    Args:
      layout: of the trajectories.
      horizon: H, theirs.
      goal: whether the last state is held too.
      values: trajectories with what is held in its place.
    """
    mask = np.zeros((horizon, layout.width), bool)
    mask[[0, -1] if goal else [0], layout.actions :] = True
    return constraints.inpaint(mask, values)


def loss_weights(
    layout: Layout, action_weight: Scalar, discount: Scalar
) -> Float[Array, "1 H D"]:
    """discount^h over its mean, and `action_weight` for the first action.

    As in the authors' code, the weight of the first action replaces the other one.
    """
    discounts = discount ** jnp.arange(layout.horizon, dtype=jnp.float32)
    weights = jnp.repeat((discounts / discounts.mean())[:, None], layout.width, 1)
    return weights.at[0, : layout.actions].set(action_weight)[None]


def averaged(
    model: Model, step: Int[Array, ""], decay: Scalar, every: int, start: int
) -> Model:
    """The average after update `step`, counted from 0, as Diffuser's trainer has it.

    At multiples of `every` it becomes the parameters before update `start`, and from
    then on moves towards them by 1 - decay.
    """

    def rate(count: int | Int[Array, ""]) -> Scalar:
        return jnp.where(count < start, 1.0, 1.0 - decay)

    return follow(model, Averaging(rate, period=every), count=step)


def return_labels(
    dataset: Any, discount: float, termination_penalty: float, scale: float | None
) -> Float[np.ndarray, " N"]:
    """Returns to go over a scale, what Decision Diffuser conditions on.

    Args:
      dataset: on the host.
      discount: of `returns_to_go`, like the penalty.
      termination_penalty: of a true end.
      scale: of the returns; None takes the greatest of them, whose label is then 1.

    Raises:
      ValueError: the scale is not more than 0.
    """
    returns = returns_to_go(dataset, discount, penalty=termination_penalty)
    by = float(returns.max()) if scale is None else scale
    if not by > 0:
        raise ValueError(
            f"returns are divided by {by:g}, and it must be more than 0: set "
            "returns_scale, which is the greatest return of the data where it is None"
        )
    return (returns / by).astype(np.float32)


def warn_of_target(target: float, labels: Float[np.ndarray, " N"]) -> None:
    """Warns of a target further from the labels than half of their span."""
    low, high = float(labels.min()), float(labels.max())
    if max(low - target, target - high) > (high - low) / 2:
        warnings.warn(
            f"target_return={target:g} is far outside the returns of the data, which "
            f"are {low:.3g} to {high:.3g} over returns_scale: ask for one among them "
            "or set returns_scale",
            stacklevel=2,
        )
