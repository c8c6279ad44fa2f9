"""The one dataset type: flat float32 arrays with episode bounds.

Here on the host, as numpy arrays; the runtime puts them on the device once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jdql.data.normalize import Scaling
from jdql.types import Array, Bool, DataSpec, Float, Int

# Actions may lie outside their bounds by this much: float32 against float64 bounds.
ACTION_TOLERANCE = 1e-5


class Dataset(NamedTuple):
    """`N` transitions of `E` episodes, stored in the order in which they happened.

    `terminal` marks true ends, after which there is no return to come; `timeout` marks
    steps after which recording stopped though the episode had not ended.  Only the
    former stops bootstrapping.  `episode_ends[i]` is one past the last transition of
    episode i.
    """

    observation: Float[Array, "N O"]
    action: Float[Array, "N A"]
    reward: Float[Array, " N"]
    next_observation: Float[Array, "N O"]
    terminal: Bool[Array, " N"]
    timeout: Bool[Array, " N"]
    episode_ends: Int[Array, " E"]

    @property
    def size(self) -> int:
        """Number of transitions, N."""
        return self.reward.shape[0]


class Source(NamedTuple):
    """A dataset read into memory (numpy arrays) and what is known about it.

    `id` names the data that was really read and goes into every result: it is the id
    of jdql's own collection where Minari's was not to be had.  `data_return` is the
    mean and standard deviation of the behaviour's undiscounted return, in the
    environment's own reward (before any transform).  `scaling` is what the observations
    were scaled by; None, as they are.
    """

    id: str
    dataset: Dataset
    spec: DataSpec
    data_return: tuple[float, float] = (float("nan"), float("nan"))
    scaling: Scaling | None = None


def from_arrays(
    observation: Any,
    action: Any,
    reward: Any,
    next_observation: Any,
    terminal: Any,
    timeout: Any = None,
    episode_ends: Any = None,
) -> Dataset:
    """A dataset of host arrays: float32, bool and int32.

    Args:
      observation: [N, O].
      action: [N, A].
      reward: [N].
      next_observation: [N, O].
      terminal: [N], true ends.
      timeout: [N], other ends of recording; none where it is not given.
      episode_ends: [E]; by default one past every terminal, time-out and the last row.

    Returns:
      The dataset, in which the last transition of an episode is always either terminal
      or a time-out.

    Raises:
      ValueError: the arrays are empty or their lengths differ.
    """
    terminal = np.asarray(terminal).astype(bool)
    timeout = np.zeros(terminal.shape, bool) if timeout is None else np.array(timeout)
    timeout = timeout.astype(bool, copy=False)
    arrays: dict[str, Any] = {
        "observation": np.asarray(observation, np.float32),
        "action": np.asarray(action, np.float32),
        "reward": np.asarray(reward, np.float32),
        "next_observation": np.asarray(next_observation, np.float32),
        "terminal": terminal,
        "timeout": timeout,
    }
    _check_shapes(arrays)
    if episode_ends is None:
        last = terminal | timeout
        last[-1] = True
        episode_ends = np.flatnonzero(last) + 1
    ends: Any = np.asarray(episode_ends, np.int32)
    timeout[ends - 1] = ~terminal[ends - 1]
    return Dataset(**arrays, episode_ends=ends)


def _check_shapes(arrays: dict[str, np.ndarray]) -> None:
    sizes = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"the arrays of a dataset differ in length: {listed}")
    if sizes["reward"] == 0:
        raise ValueError("the dataset is empty: it has no transitions")
    for name, array in arrays.items():
        matrix = name in ("observation", "action", "next_observation")
        if array.ndim != (2 if matrix else 1):
            expected = "[N, dimension]" if matrix else "[N]"
            raise ValueError(
                f"{name} must have shape {expected}, it has {array.shape}; "
                "jdql reads flat vectors, not pixels"
            )
    if arrays["observation"].shape != arrays["next_observation"].shape:
        raise ValueError(
            f"observation {arrays['observation'].shape} and next_observation "
            f"{arrays['next_observation'].shape} must have one shape"
        )


def make_spec(
    dataset: Dataset, low: Any = -1.0, high: Any = 1.0, *, name: str = "the dataset"
) -> DataSpec:
    """What agents must know of a dataset whose action space is `[low, high]`.

    Args:
      dataset: Gives the sizes.
      low: Lowest action, one number or one per dimension.
      high: Highest action, likewise.
      name: How an error calls the dataset.

    Raises:
      ValueError: a bound is not finite, or low is not below high.
    """
    dim = dataset.action.shape[1]
    try:
        lows = np.broadcast_to(np.asarray(low, np.float64), (dim,))
        highs = np.broadcast_to(np.asarray(high, np.float64), (dim,))
    except ValueError:
        raise ValueError(
            f"{name}: actions have {dim} dimensions, their bounds have shape "
            f"{np.shape(low)} and {np.shape(high)}"
        ) from None
    if not (np.isfinite(lows) & np.isfinite(highs) & (lows < highs)).all():
        raise ValueError(
            f"{name}: action bounds must be finite and low < high, they are "
            f"{lows.tolist()} and {highs.tolist()}"
        )
    return DataSpec(
        observation_dim=dataset.observation.shape[1],
        action_dim=dim,
        action_low=tuple(lows.tolist()),
        action_high=tuple(highs.tolist()),
    )


def check(dataset: Dataset, spec: DataSpec, *, name: str = "the dataset") -> Dataset:
    """Returns the dataset, if it may be trained on.

    Raises:
      ValueError: arrays are empty or of different lengths, episode bounds do not cover
        them, a value is not finite, or an action lies outside its space.
    """
    arrays = dataset._asdict()
    ends = arrays.pop("episode_ends")
    try:
        _check_shapes(arrays)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if (
        len(ends) == 0
        or ends[-1] != dataset.size
        or (np.diff(ends, prepend=0) < 1).any()
    ):
        raise ValueError(
            f"{name}: episode_ends must rise strictly to the number of transitions, "
            f"{dataset.size}"
        )
    for field in ("observation", "action", "reward", "next_observation"):
        _check_finite(arrays[field], f"{name}: {field}")
    sizes = (dataset.observation.shape[1], dataset.action.shape[1])
    if sizes != (spec.observation_dim, spec.action_dim):
        raise ValueError(
            f"{name}: observations and actions have {sizes} dimensions, the spec "
            f"says {(spec.observation_dim, spec.action_dim)}"
        )
    _check_actions(dataset.action, spec, name)
    return dataset


def _check_finite(array: np.ndarray, name: str) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = ", ".join(str(i) for i in index)
        raise ValueError(
            f"{name}[{where}] is {array[index]}: {int(bad.sum())} values are not "
            "finite; remove those transitions from the file"
        )


def _check_actions(action: Any, spec: DataSpec, name: str) -> None:
    low = np.asarray(spec.action_low) - ACTION_TOLERANCE
    high = np.asarray(spec.action_high) + ACTION_TOLERANCE
    bad = (action < low.astype(np.float32)) | (action > high.astype(np.float32))
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: action[{row}, {column}] is {action[row, column]:g}, outside the "
            f"action space [{spec.action_low[column]:g}, {spec.action_high[column]:g}] "
            f"({int(bad.any(axis=1).sum())} such transitions)"
        )


def concatenate(datasets: Sequence[Dataset]) -> Dataset:
    """One dataset of several, in their order.

    Raises:
      ValueError: there are none, or their observations or actions differ in size.
    """
    if not datasets:
        raise ValueError("there are no datasets to concatenate")
    if len(datasets) == 1:
        return datasets[0]
    sizes = {(d.observation.shape[1], d.action.shape[1]) for d in datasets}
    if len(sizes) > 1:
        raise ValueError(
            "datasets that are concatenated must have one observation and one action "
            f"size; theirs (observation, action) are {sorted(sizes)}"
        )
    offsets = np.cumsum([0] + [d.size for d in datasets[:-1]])
    shifted = [
        d._replace(episode_ends=d.episode_ends + offset)
        for d, offset in zip(datasets, offsets.astype(np.int32), strict=True)
    ]
    fields: Any = [np.concatenate(field) for field in zip(*shifted, strict=True)]
    return Dataset(*fields)


def select_episodes(dataset: Dataset, episodes: str) -> Dataset:
    """The episodes of a slice such as "0:14", in their order.

    Raises:
      ValueError: the text is no slice, or it selects nothing.
    """
    count = len(dataset.episode_ends)
    try:
        first, last = (int(part) if part else None for part in episodes.split(":"))
    except ValueError:
        raise ValueError(
            f"data.episodes must be FIRST:LAST, such as 0:14, it is '{episodes}'"
        ) from None
    kept = range(count)[first:last]
    if not kept:
        raise ValueError(f"data.episodes={episodes} keeps none of {count} episodes")
    bounds = [0, *dataset.episode_ends.tolist()]
    begin, end = bounds[kept.start], bounds[kept.stop]
    fields: list[Any] = [field[begin:end] for field in dataset[:-1]]
    ends = dataset.episode_ends[kept.start : kept.stop] - np.int32(begin)
    return Dataset(*[*fields, ends])


def episode_returns(dataset: Dataset) -> np.ndarray:
    """Undiscounted return of every episode, float64 [E]."""
    starts = np.concatenate([[0], dataset.episode_ends[:-1]])
    return np.add.reduceat(np.asarray(dataset.reward, np.float64), starts)


def data_return(dataset: Dataset) -> tuple[float, float]:
    """Mean and standard deviation of the return over whole episodes.

    A last episode that is not terminal is left out where there are others: the end of
    the recording may have cut it.
    """
    returns = episode_returns(dataset)
    if len(returns) > 1 and not dataset.terminal[-1]:
        returns = returns[:-1]
    return float(returns.mean()), float(returns.std())
