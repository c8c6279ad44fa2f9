"""Whole episodes: joined, selected, held out, and what they still pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jdql.data.dataset import Dataset


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


def hold_out(dataset: Dataset, count: int) -> tuple[Dataset, Dataset | None]:
    """The dataset without its last `count` episodes, and those; None for a count of 0.

    Raises:
      ValueError: the count is negative, or leaves nothing to train on.
    """
    episodes = len(dataset.episode_ends)
    if not 0 <= count < episodes:
        raise ValueError(
            f"data.held_out must leave an episode to train on and not be negative: it "
            f"is {count}, and there are {episodes} episodes"
        )
    if count == 0:
        return dataset, None
    # Deviation: Diffusion Policy draws the episodes that it validates on at random.
    training = select_episodes(dataset, f":-{count}")
    return training, select_episodes(dataset, f"-{count}:")


def returns_to_go(
    dataset: Dataset, discount: float, *, penalty: float = 0.0
) -> np.ndarray:
    """Discounted return from every transition to the end of its episode, float32 [N].

    `G_i = r_i + discount G_{i+1}`, and `G_i = r_i` at the last transition, time-outs
    included: what would have followed one counts as 0.

    Args:
      dataset: On the host.
      discount: The factor per step, in [0, 1].
      penalty: Added to the reward of true ends, and of them only (Diffuser and Decision
        Diffuser: -100 in locomotion).
    """
    reward = np.asarray(dataset.reward, np.float64) + penalty * dataset.terminal
    keep = np.full(dataset.size, float(discount))
    keep[np.asarray(dataset.episode_ends) - 1] = 0.0
    made = np.empty(dataset.size, np.float32)
    rest = 0.0
    steps = zip(reward[::-1].tolist(), keep[::-1].tolist(), strict=True)
    for i, (paid, kept) in enumerate(steps, start=1):
        rest = paid + kept * rest
        made[-i] = rest
    return made


def paid_before(dataset: Dataset) -> np.ndarray:
    """Whether an earlier transition of the episode has a reward above 0, bool [N].

    Where rewards are for being at a goal: whether the observation of a transition
    follows the arrival.

    Args:
      dataset: On the host.
    """
    paid = (np.asarray(dataset.reward) > 0).astype(np.int64)
    count = np.cumsum(paid) - paid  # before each transition, in all episodes
    begin = np.concatenate([[0], np.asarray(dataset.episode_ends)[:-1]])
    lengths = np.diff(dataset.episode_ends, prepend=0)
    return count > np.repeat(count[begin], lengths)
