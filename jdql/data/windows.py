"""Windows of consecutive steps: how many there are, where they lie, what pads them.

A window of L steps may reach up to `before` steps before the start of its episode and
up to `after` steps behind its end, but never into another episode, and at least one of
its steps is inside.  What it lacks is padded by a rule, a function of windows.
Everything here needs `Dataset.episode_ends` alone, and is pure and jittable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jdql.data.dataset import Dataset
from jdql.types import Array, Bool, Int, Window

Padding = Callable[[Window], Window]


class Rows(NamedTuple):
    """Where the steps of windows lie in a dataset.

    `row` is the number of the transition, for steps outside the episode that of the
    nearest one inside; `valid` says which steps are inside.  Labels of all transitions
    [N, ...] are taken for a window by `label[rows.row]`.
    """

    row: Int[Array, "*B L"]
    valid: Bool[Array, "*B L"]


def check(length: int, before: int, after: int, stride: int = 1) -> None:
    """Refuses sizes of windows that cannot be.

    Raises:
      ValueError: a size is out of its range.
    """
    if length < 1 or stride < 1:
        raise ValueError(
            f"windows must have at least 1 step and a stride of at least 1; got "
            f"{length=}, {stride=}"
        )
    span = (length - 1) * stride + 1
    if not (0 <= before < span and 0 <= after < span):
        raise ValueError(
            f"a window of {span} steps can be padded by 0 to {span - 1} of them on "
            f"either side; got {before=}, {after=}"
        )
    if before and stride > 1:
        raise ValueError(
            f"windows with a stride begin inside their episode: {stride=} needs "
            f"before=0, it is {before}"
        )


def counts(
    episode_ends: Int[Array, " E"],
    length: int,
    before: int = 0,
    after: int = 0,
    stride: int = 1,
) -> Int[Array, " E"]:
    """Number of windows of every episode: `max(0, T - span + before + after + 1)`.

    T is the length of the episode, `span = (length - 1) stride + 1` that of a window.
    An episode with fewer than `span - before - after` steps has none.

    Args:
      episode_ends: One past the last transition of each episode.
      length: Steps of a window, L.
      before: Most steps before the start of an episode, less than `span`.
      after: Most steps behind its end, less than `span`.
      stride: Environment steps from one step of a window to the next.

    Raises:
      ValueError: a size is out of its range.
    """
    check(length, before, after, stride)
    span = (length - 1) * stride + 1
    # Deviation: Diffuser and Decision Diffuser leave out windows that start at the last
    # step of an episode, the last whole window of each where they do not pad, and those
    # that start later than the longest episode's length allows without padding.
    steps = jnp.diff(episode_ends, prepend=0)
    return jnp.maximum(steps - span + before + after + 1, 0)


def require(
    episode_ends: Any, length: int, before: int = 0, after: int = 0, stride: int = 1
) -> int:
    """The number of windows in a dataset, if there are any; on the host.

    What an agent that draws windows calls when it prepares its data.

    Raises:
      ValueError: every episode is too short, or a size is out of its range.
    """
    ends = np.asarray(episode_ends)
    number = int(counts(jnp.asarray(ends), length, before, after, stride).sum())
    if number == 0:
        longest = int(np.diff(ends, prepend=0).max())
        raise ValueError(
            f"no episode is long enough for a window of {length} steps (the longest "
            f"has {longest} transitions; {before=}, {after=}, {stride=}): take shorter "
            "windows or allow more padding"
        )
    return number


def locate(
    index: Int[Array, "*B"], windows: Int[Array, " E"], before: int = 0
) -> tuple[Int[Array, "*B"], Int[Array, "*B"]]:
    """Episode and first step of the window with a number.

    Windows are numbered through all episodes, the earliest first.

    Args:
      index: Numbers from 0 to the sum of `windows`.
      windows: Of each episode, from `counts`; 0 leaves an episode out.
      before: As in `counts`.

    Returns:
      The number of the episode, and the window's first step counted from the episode's
      start: -`before` is the least.
    """
    total = jnp.cumsum(windows)
    episode = jnp.searchsorted(total, index, side="right")
    return episode, index - (total - windows)[episode] - before


def rows(
    episode_ends: Int[Array, " E"],
    episode: Int[Array, "*B"],
    start: Int[Array, "*B"],
    length: int,
    stride: int = 1,
) -> Rows:
    """The steps `start + i stride`, i = 0..length-1, of an episode.

    Args:
      episode_ends: One past the last transition of each episode.
      episode: Its number.
      start: First step, counted from the episode's start; may be negative.
      length: Steps of a window, L.
      stride: Environment steps from one step of a window to the next.
    """
    first = begin(episode_ends, episode)[..., None]
    last = episode_ends[episode][..., None] - 1
    row = first + start[..., None] + stride * jnp.arange(length)
    return Rows(jnp.clip(row, first, last), (first <= row) & (row <= last))


def begin(
    episode_ends: Int[Array, " E"], episode: Int[Array, "*B"]
) -> Int[Array, "*B"]:
    """The first transition of the episodes with these numbers."""
    return jnp.where(episode > 0, episode_ends[episode - 1], 0)


def take(dataset: Dataset, rows: Rows) -> Window:
    """The windows of these rows, padded with the episode's first and last step."""
    row, last = rows.row, rows.row[..., -1]
    valid = rows.valid.astype(dataset.reward.dtype)
    begun = jnp.cumsum(rows.valid, axis=-1) > 0
    return Window(
        observation=dataset.observation[row],
        action=dataset.action[row],
        reward=jnp.where(rows.valid, dataset.reward[row], 0),
        valid=valid,
        mask=1 - (dataset.terminal[row] & begun).astype(valid.dtype),
        next_observation=dataset.next_observation[last],
    )


def repeat(window: Window) -> Window:
    """Padding with the first and the last observation and action of the episode."""
    return window


def drop(window: Window) -> Window:
    """No padding: only windows that lie inside their episode are drawn."""
    return window


def zero(observation: Any = 0.0, action: Any = 0.0) -> Padding:
    """Padding with constants.

    Args:
      observation: Number or vector [O].  Padding with 0 in the environment's units, as
        Diffuser does, is `scaling.observation.forward(0)` on the agents' scale.
      action: Number or vector [A], likewise.
    """

    def rule(window: Window) -> Window:
        inside = window.valid[..., None] > 0
        return window._replace(
            observation=jnp.where(inside, window.observation, observation),
            action=jnp.where(inside, window.action, action),
        )

    return rule
