"""The one dataset type: flat float32 arrays with episode bounds.

Here on the host, as numpy arrays; the runtime puts them on the device once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jdql.data import scaling as scalings
from jdql.data.scaling import Scaling, Side
from jdql.types import Array, Bool, DataSpec, Float, Int

# Actions may lie outside their bounds by this much: float32 against float64 bounds.
ACTION_TOLERANCE = 1e-5


class Dataset(NamedTuple):
    """`N` transitions of `E` episodes, stored in the order in which they happened.

    `terminal` marks true ends, after which there is no return to come; `timeout` marks
    steps after which recording stopped though the episode had not ended.  Only the
    former stops bootstrapping.  The last transition of every episode is one of both,
    and no other is.  `episode_ends[i]` is one past the last transition of episode i.
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

    Made by `make_source`.

    Attributes:
      id: Names the data that was really read and goes into every result: it is the id
        of jdql's own collection where Minari's was not to be had.
      dataset: What is trained on; its observations and actions are scaled.
      spec: The environment's sizes and action space.
      data_return: Mean and standard deviation of the behaviour's undiscounted return,
        in the environment's own reward (before any transform).
      scaling: What observations and actions were scaled by.
      agent_spec: The spec that agents are made with: actions on the scale of `dataset`.
      held_out: Episodes that are not trained on, transformed and scaled as `dataset`;
        None where none were asked for.
    """

    id: str
    dataset: Dataset
    spec: DataSpec
    data_return: tuple[float, float]
    scaling: Scaling
    agent_spec: DataSpec
    held_out: Dataset | None


def make_source(name: str, dataset: Dataset, spec: DataSpec) -> Source:
    """The source of a dataset as it was read: nothing is scaled, nothing held out."""
    as_it_is = Scaling(
        scalings.identity(dataset.observation), scalings.identity(dataset.action)
    )
    return Source(name, dataset, spec, data_return(dataset), as_it_is, spec, None)


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
    last = terminal | timeout
    last[-1] = True
    if episode_ends is not None:
        last[np.asarray(episode_ends) - 1] = True
    ends: Any = (np.flatnonzero(last) + 1).astype(np.int32)
    timeout[ends - 1] = ~terminal[ends - 1]
    return Dataset(**arrays, episode_ends=ends)


def whole_episodes(
    observation: Any, action: Any, reward: Any, ends: Any, terminal: Any = None
) -> Dataset:
    """Episodes without an observation behind their last action, no step left out.

    Args:
      observation: [N, O].
      action: [N, A].
      reward: [N].
      ends: [E], one past the last step of each episode.
      terminal: [N], read at the last steps: those that truly ended; by default none.
    """
    last = np.zeros(len(action), bool)
    last[np.asarray(ends) - 1] = True
    # The last observation stands in for the one that was not recorded.
    following = np.where(last, 0, 1) + np.arange(len(last))
    ended = last & (False if terminal is None else np.asarray(terminal, bool))
    return from_arrays(
        observation,
        action,
        reward,
        np.asarray(observation)[following],
        ended,
        last & ~ended,
    )


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


def agent_spec(spec: DataSpec, action: Side, name: str) -> DataSpec:
    """The spec that agents see: the bounds of their actions on their own scale.

    Args:
      spec: That of the action space.
      action: The map of the actions.
      name: The name of that map.

    Returns:
      Bounds of -1 and 1 for maps into that range; else the space's, mapped.
    """
    if scalings.by_name(name) in scalings.UNIT:
        ones = (1.0,) * spec.action_dim
        return spec._replace(action_low=tuple(-b for b in ones), action_high=ones)
    low, high = (
        tuple(action.forward(np.asarray(bound, np.float64)).tolist())
        for bound in (spec.action_low, spec.action_high)
    )
    return spec._replace(action_low=low, action_high=high)


def check(dataset: Dataset, spec: DataSpec, *, name: str = "the dataset") -> Dataset:
    """Returns the dataset, if it may be trained on.

    Raises:
      ValueError: arrays are empty or of different lengths, episode bounds do not cover
        them or contradict the terminals and time-outs, a value is not finite, or an
        action lies outside its space.
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
    _check_ends(dataset, name)
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


def _check_ends(dataset: Dataset, name: str) -> None:
    marked = np.flatnonzero(dataset.terminal | dataset.timeout) + 1
    if not np.array_equal(marked, dataset.episode_ends):
        row = int(np.setxor1d(marked, dataset.episode_ends)[0]) - 1
        raise ValueError(
            f"{name}: transition {row} must be the last of its episode and marked as "
            "terminal or time-out, or neither; make the dataset with from_arrays"
        )


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
