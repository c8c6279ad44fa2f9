"""Reward transforms, applied once when data are loaded.

Each is a function `(dataset, training) -> dataset` that replaces the rewards of
`dataset`, using statistics of `training`: the two differ for episodes that are held
out of training.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from jdql.data.dataset import Dataset, episode_returns

Transform = Callable[[Dataset, Dataset], Dataset]


def none(dataset: Dataset, training: Dataset) -> Dataset:
    """Rewards as they are."""
    del training
    return dataset


def normalize(dataset: Dataset, training: Dataset) -> Dataset:
    """`(r - mean) / std` with the unbiased standard deviation (divisor N - 1).

    Raises:
      ValueError: all rewards are equal, or there are fewer than two.
    """
    known = np.asarray(training.reward, np.float64)
    std = known.std(ddof=1) if known.size > 1 else 0.0
    if not std > 0:
        raise ValueError(
            "reward=normalize divides by the standard deviation of the rewards, which "
            "is 0 here (all rewards are equal); use reward=none"
        )
    scaled = (np.asarray(dataset.reward, np.float64) - known.mean()) / std
    made: Any = scaled.astype(np.float32)
    return dataset._replace(reward=made)


def antmaze(dataset: Dataset, training: Dataset) -> Dataset:
    """`(r - 0.5) * 4`: a sparse reward of 0 or 1 becomes -2 or 2."""
    del training
    return dataset._replace(reward=(dataset.reward - np.float32(0.5)) * np.float32(4.0))


def minus_one(dataset: Dataset, training: Dataset) -> Dataset:
    """`r - 1`: a sparse reward of 0 or 1 becomes a cost of 1 for each step."""
    del training
    return dataset._replace(reward=dataset.reward - np.float32(1))


def minmax(dataset: Dataset, training: Dataset) -> Dataset:
    """`2 (r - min) / (max - min) - 1`: rewards of the training data within [-1, 1].

    Raises:
      ValueError: all rewards are equal.
    """
    reward = np.asarray(dataset.reward, np.float64)
    known: Any = np.asarray(training.reward, np.float64)
    low, high = known.min(), known.max()
    if not high > low:
        raise ValueError(
            "reward=minmax divides by the range of the rewards, which is 0 here (all "
            "rewards are equal); use reward=none"
        )
    scaled = 2 * (reward - low) / (high - low) - 1
    return dataset._replace(reward=scaled.astype(np.float32))


def iql_locomotion(dataset: Dataset, training: Dataset) -> Dataset:
    """`1000 r / (max return - min return)`, over the episodes of the training data.

    Kostrikov, Nair & Levine 2022 for locomotion, and methods built on theirs.

    Raises:
      ValueError: all episodes have the same return, or there is only one.
    """
    returns = episode_returns(training)
    spread = returns.max() - returns.min()
    if not spread > 0:
        raise ValueError(
            "reward=iql_locomotion divides by the range of the episodes' returns, "
            "which is 0 here (all returns are equal); use reward=none"
        )
    scaled = np.asarray(dataset.reward, np.float64) * (1000 / spread)
    return dataset._replace(reward=scaled.astype(np.float32))


TRANSFORMS: dict[str, Transform] = {
    "none": none,
    "normalize": normalize,
    "antmaze": antmaze,
    "minus_one": minus_one,
    "minmax": minmax,
    "iql_locomotion": iql_locomotion,
}


def by_name(name: str) -> Transform:
    """The transform of that name, or the function `package.module:function`.

    Raises:
      ValueError: there is none.
    """
    if ":" in name:
        return _imported(name)
    if name not in TRANSFORMS:
        nearest = difflib.get_close_matches(name, TRANSFORMS, 1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        raise ValueError(
            f"no reward transform is called '{name}'{hint} (allowed: "
            f"{', '.join(TRANSFORMS)}, or package.module:function)"
        )
    return TRANSFORMS[name]


def _imported(name: str) -> Transform:
    module_name, _, function_name = name.partition(":")
    try:
        function = vars(importlib.import_module(module_name)).get(function_name)
    except ImportError as error:
        raise ValueError(
            f"data.reward={name}: {module_name} cannot be imported ({error})"
        ) from error
    if not callable(function):
        raise ValueError(
            f"data.reward={name}: {module_name} has no function '{function_name}'"
        )
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise ValueError(
            f"data.reward={name}: the function must take two datasets, the one whose "
            f"rewards it replaces and the training data ({error})"
        ) from None
    return function
