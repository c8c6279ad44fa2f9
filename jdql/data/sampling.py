"""Batches drawn from a dataset that lives on the device.

Every function is pure and jittable with its sizes static; inside `vmap` the dataset is
shared and only the keys differ.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jdql.data import windows as layout
from jdql.data.dataset import Dataset
from jdql.data.windows import Padding, Rows
from jdql.types import (
    Array,
    Bool,
    Chunk,
    Float,
    Future,
    Int,
    PRNGKeyArray,
    Transition,
    Window,
)


def transitions(key: PRNGKeyArray, dataset: Dataset, batch_size: int) -> Transition:
    """Draws `B = batch_size` transitions uniformly, with replacement.

    Args:
      key: Used once.
      dataset: Arrays of `N` transitions.
      batch_size: Number of transitions, B.

    Returns:
      A batch in which `mask` is 0 at true ends and 1 elsewhere, time-outs included.
    """
    return _transitions(dataset, _uniform(key, dataset, batch_size))


def _uniform(key: PRNGKeyArray, dataset: Dataset, batch_size: int) -> Array:
    return jax.random.randint(key, (batch_size,), 0, dataset.size)


def _transitions(dataset: Dataset, row: Int[Array, " B"]) -> Transition:
    return Transition(
        observation=dataset.observation[row],
        action=dataset.action[row],
        reward=dataset.reward[row],
        mask=1.0 - dataset.terminal[row].astype(dataset.reward.dtype),
        next_observation=dataset.next_observation[row],
    )


def chunks(key: PRNGKeyArray, dataset: Dataset, batch_size: int, length: int) -> Chunk:
    """Draws `B = batch_size` chunks of `h = length` consecutive transitions.

    Every transition is as likely to be the first, also those with fewer than h left in
    their episode: what a chunk lacks is marked by `valid`.  With h = 1 the rows are
    those of `transitions` for the same key.

    Args:
      key: Used once.
      dataset: Arrays of `N` transitions.
      batch_size: Number of chunks, B.
      length: Transitions in a chunk, h.
    """
    first = _uniform(key, dataset, batch_size)
    episode = jnp.searchsorted(dataset.episode_ends, first, side="right")
    start = first - layout.begin(dataset.episode_ends, episode)
    # Deviation: QC fills a chunk up with the next episode's actions.  They count in no
    # loss, but the flow sees them (noised) beside the valid ones.
    rows = layout.rows(dataset.episode_ends, episode, start, length)
    last = rows.row[:, -1]
    dtype = dataset.reward.dtype
    return Chunk(
        observation=dataset.observation[first],
        action=dataset.action[rows.row],
        reward=jnp.where(rows.valid, dataset.reward[rows.row], 0),
        valid=rows.valid.astype(dtype),
        mask=1.0 - dataset.terminal[last].astype(dtype),
        next_observation=dataset.next_observation[last],
    )


def window_rows(
    key: PRNGKeyArray,
    episode_ends: Int[Array, " E"],
    batch_size: int,
    length: int,
    before: int = 0,
    after: int = 0,
    stride: int = 1,
) -> Rows:
    """Draws where `B = batch_size` windows lie, uniformly among all that there are.

    For systems that take labels of their own along the window (`label[rows.row]`); the
    window itself is `jdql.data.windows.take(dataset, rows)`.

    Args:
      key: Used once.
      episode_ends: One past the last transition of each episode.
      batch_size: Number of windows, B.
      length: Steps of a window, L.
      before: Most steps before the start of an episode.
      after: Most steps behind its end.
      stride: Environment steps from one step of a window to the next.

    Raises:
      ValueError: a size is out of its range.  That no episode is long enough cannot be
        seen here: `jdql.data.windows.require` says so on the host.
    """
    counts = layout.counts(episode_ends, length, before, after, stride)
    index = jax.random.randint(key, (batch_size,), 0, jnp.sum(counts))
    episode, start = layout.locate(index, counts, before)
    return layout.rows(episode_ends, episode, start, length, stride)


def windows(
    key: PRNGKeyArray,
    dataset: Dataset,
    batch_size: int,
    length: int,
    before: int = 0,
    after: int = 0,
    padding: Padding = layout.drop,
    stride: int = 1,
) -> Window:
    """Draws `B = batch_size` windows of `L = length` steps, uniformly among all.

    Diffusion Policy (arXiv:2303.04137): `before` one less than the observations seen,
    `after` one less than the actions executed, padding `repeat`.

    Args:
      key: Used once.
      dataset: Arrays of `N` transitions.
      batch_size: Number of windows, B.
      length: Steps of a window, L.
      before: Most steps before the start of an episode, less than L.
      after: Most steps behind its end, less than L.
      padding: `repeat`, `zero(...)` or `drop` of `jdql.data.windows`.
      stride: Environment steps from one step of a window to the next.

    Raises:
      ValueError: a size is out of its range, or the windows to drop are asked for.
    """
    if padding is layout.drop and (before or after):
        raise ValueError(
            f"padding=drop keeps whole windows only, but {before=} and {after=} ask "
            "for windows beyond an episode: set both to 0 or choose repeat or zero"
        )
    ends = dataset.episode_ends
    rows = window_rows(key, ends, batch_size, length, before, after, stride)
    return padding(layout.take(dataset, rows))


def futures(
    key: PRNGKeyArray,
    dataset: Dataset,
    batch_size: int,
    discount: float | Float[Array, ""],
    least: int = 0,
) -> Future:
    """Draws `B = batch_size` transitions, each with a state from its discounted future.

    The states are those of the discounted occupancy (DVF, arXiv:2306.07290),

        rho(s' | s_t) = (1 - gamma) sum_{d >= 0} gamma^d P(s_{t + d} = s' | s_t),

    as the data know it: in the episode of s_t, with the delay d of `geometric_delay`.
    A delay of 0 is s_t itself, so that V(s_t) = E r(s') / (1 - gamma).  With `least` 1
    the delay is 1 + d and the state is drawn from rho(. | s_{t+1}), the form of
    V(s_t) = r_t + gamma / (1 - gamma) E r(s').

    Args:
      key: Used once.
      dataset: Arrays of `N` transitions.
      batch_size: Number of transitions, B.
      discount: gamma, in [0, 1).
      least: The smallest delay, 0 or 1.

    Raises:
      ValueError: `discount` or `least` is out of its range.
    """
    if isinstance(discount, float | int) and not 0 <= discount < 1:
        raise ValueError(f"discount must be at least 0 and less than 1, got {discount}")
    if least not in (0, 1):
        raise ValueError(f"least must be 0 or 1, got {least}")
    row_key, delay_key = jax.random.split(key)
    row = _uniform(row_key, dataset, batch_size)
    episode = jnp.searchsorted(dataset.episode_ends, row, side="right")
    end = dataset.episode_ends[episode]
    u = 1.0 - jax.random.uniform(delay_key, (batch_size,))
    absorbing = dataset.terminal[end - 1]
    delay = least + geometric_delay(u, end - row - least, discount, absorbing)
    following = dataset.next_observation[row + jnp.maximum(delay, 1) - 1]
    now = (delay == 0)[:, None]
    future = jnp.where(now, dataset.observation[row], following)
    return Future(_transitions(dataset, row), future, delay)


def geometric_delay(
    u: Float[Array, "*B"],
    most: Int[Array, "*B"],
    discount: float | Float[Array, ""],
    absorbing: Bool[Array, "*B"],
) -> Int[Array, "*B"]:
    """The delay d in 0..most at the quantile 1 - u of a geometric distribution.

    - Where the last state is absorbing, all later times are spent in it:
      P(d) = (1 - gamma) gamma^d for d < most, and P(most) = gamma^most.
    - Where it is not (a time-out), nothing is known of later times, and they are cut:
      P(d) = (1 - gamma) gamma^d / (1 - gamma^(most + 1)).

    Since P(d >= m) = gamma^m, `d = floor(log v / log gamma)` with v uniform in (0, 1],
    or in (gamma^(most + 1), 1] where later times are cut.

    Args:
      u: Uniform in (0, 1].
      most: Steps to the episode's last state, at least 0.
      discount: gamma, in [0, 1).
      absorbing: Whether the last state is a true end.
    """
    gamma = jnp.asarray(discount, u.dtype)
    cut = jnp.where(absorbing, 0.0, gamma ** (most + 1))
    delay = jnp.floor(jnp.log(cut + u * (1.0 - cut)) / jnp.log(gamma))
    return jnp.clip(delay.astype(jnp.int32), 0, most)
