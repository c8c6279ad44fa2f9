"""Aggregate scores over seeds and tasks, and how sure they are.

A *table* is a list with one array per task, its last axis the runs (seeds) of the task.
Arrays may have leading axes: `resample` puts the repetitions of the bootstrap there, so
every statistic below works on one table and on thousands at once.  After Agarwal et
al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Value = np.float64 | NDArray[np.float64]  # a number, or one per repetition
Table = Sequence[ArrayLike]  # per task: scores, (..., N) with N runs
Indices = list[NDArray[np.int64]]  # per task: which runs, (R, N)
Statistic = Callable[[Table], Value]

REPETITIONS = 2_000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A statistic of the data with its percentile interval; scalars or arrays."""

    value: Value
    low: Value
    high: Value


def standard_error(values: ArrayLike) -> float:
    """Of a mean, `std / sqrt(N)` with N - 1 in the variance; 0 of one value."""
    every = np.asarray(values, np.float64)
    return float(every.std(ddof=1) / len(every) ** 0.5) if len(every) > 1 else 0.0


# Statistics of a table: (..., N) per task -> (...) ------------------------------------


def mean(table: Table) -> Value:
    """Mean over tasks of the mean over runs."""
    return _task_means(table).mean(axis=-1)


def median(table: Table) -> Value:
    """Median over tasks of the mean over runs."""
    return np.median(_task_means(table), axis=-1)


def interquartile_mean(table: Table) -> Value:
    """Mean of the middle half of all runs of all tasks.

    Of n runs the lowest and the highest floor(n / 4) are left out, so below four runs
    it is their mean.  Every run counts once: a task with more runs weighs more.
    """
    runs = np.sort(_pooled(table), axis=-1)
    count = runs.shape[-1]
    cut = count // 4
    return runs[..., cut : count - cut].mean(axis=-1)


def optimality_gap(table: Table, target: float = 100.0) -> Value:
    """Mean shortfall below `target`, over runs and then tasks; lower is better.

    Args:
      table: scores.
      target: the score from which on nothing is missing, 100 on the normalised scale.
    """
    capped = [np.minimum(scores, target) for scores in _arrays(table)]
    return target - mean(capped)


def probability_of_improvement(ours: Table, theirs: Table) -> Value:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2, X a run of ours and Y of theirs.

    Args:
      ours: per task (..., N).
      theirs: the same tasks in the same order, (..., M).

    Raises:
      ValueError: the numbers of tasks differ.
    """
    if len(ours) != len(theirs):
        raise ValueError(
            f"both tables must have the same tasks: they have {len(ours)} and "
            f"{len(theirs)}"
        )
    shares = []
    for x, y in zip(_arrays(ours), _arrays(theirs), strict=True):
        difference = x[..., :, None] - y[..., None, :]
        shares.append((0.5 + 0.5 * np.sign(difference)).mean(axis=(-2, -1)))
    return np.stack(shares, axis=-1).mean(axis=-1)


def performance_profile(table: Table, thresholds: ArrayLike) -> Floats:
    """Share of runs above each threshold, averaged over tasks.

    Args:
      table: scores.
      thresholds: (P,).

    Returns:
      Shares from 0 to 1, (..., P).
    """
    limits = np.asarray(thresholds, np.float64)
    shares = [(s[..., None] > limits).mean(axis=-2) for s in _arrays(table)]
    return np.mean(shares, axis=0)


def _arrays(table: Table) -> list[Floats]:
    arrays = [np.asarray(scores, np.float64) for scores in table]
    if not arrays or any(a.ndim == 0 or a.shape[-1] == 0 for a in arrays):
        raise ValueError("a table of scores needs a task, and every task a run")
    return arrays


def _task_means(table: Table) -> Floats:
    return np.stack([scores.mean(axis=-1) for scores in _arrays(table)], axis=-1)


def _pooled(table: Table) -> Floats:
    return np.concatenate(_arrays(table), axis=-1)


# The stratified bootstrap -------------------------------------------------------------


def draw_indices(
    table: Table, rng: np.random.Generator, repetitions: int = REPETITIONS
) -> Indices:
    """Draws, within each task, as many runs as it has, with replacement.

    Args:
      table: one table, (N,) per task.
      rng: the source of the draws.
      repetitions: R.

    Returns:
      Per task the drawn runs, (R, N).
    """
    counts = [scores.shape[-1] for scores in _arrays(table)]
    return [rng.integers(count, size=(repetitions, count)) for count in counts]


def resample(table: Table, indices: Indices) -> list[Floats]:
    """The R tables that the indices name: (N,) per task -> (R, N)."""
    return [s[i] for s, i in zip(_arrays(table), indices, strict=True)]


def estimate(
    statistic: Statistic, table: Table, indices: Indices, level: float = LEVEL
) -> Estimate:
    """A statistic with its percentile bootstrap interval.

    Args:
      statistic: one of this module's, or any function of a table.
      table: one table, (N,) per task.
      indices: from `draw_indices`.
      level: coverage of the interval, between 0 and 1.
    """
    low, high = percentiles(statistic(resample(table, indices)), level)
    return Estimate(statistic(table), low, high)


def estimate_improvement(
    ours: Table,
    theirs: Table,
    indices: tuple[Indices, Indices],
    level: float = LEVEL,
) -> Estimate:
    """The probability of improvement with its percentile bootstrap interval.

    Args:
      ours: per task (N,).
      theirs: per task (M,), the same tasks.
      indices: from `draw_indices` for each of the two, drawn independently.
      level: coverage of the interval, between 0 and 1.
    """
    drawn = probability_of_improvement(
        resample(ours, indices[0]), resample(theirs, indices[1])
    )
    low, high = percentiles(drawn, level)
    return Estimate(probability_of_improvement(ours, theirs), low, high)


def estimate_curve(
    values: ArrayLike, indices: NDArray[np.int64], level: float = LEVEL
) -> Estimate:
    """The mean learning curve of N runs with its pointwise percentile interval.

    Whole runs are drawn, so a run's evaluations stay together.

    Args:
      values: (N, E), one row per run.
      indices: (R, N).
      level: coverage of the interval, between 0 and 1.

    Returns:
      Arrays (E,).
    """
    values = np.asarray(values, np.float64)
    low, high = percentiles(values[indices].mean(axis=1), level)
    return Estimate(values.mean(axis=0), low, high)


def percentiles(draws: ArrayLike, level: float = LEVEL) -> tuple[Value, Value]:
    """The bounds that hold the middle share `level` of draws, (R, ...) -> (...)."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    tail = (1 - level) / 2
    low, high = np.quantile(np.asarray(draws), [tail, 1 - tail], axis=0)
    return low, high
