"""Batches drawn from a dataset that lives on the device."""

from __future__ import annotations

import jax

from jdql.data.dataset import Dataset
from jdql.types import PRNGKeyArray, Transition


def transitions(key: PRNGKeyArray, dataset: Dataset, batch_size: int) -> Transition:
    """Draws `B = batch_size` transitions uniformly, with replacement.

    Pure and jittable with `batch_size` static; inside `vmap` the dataset is shared and
    only the keys differ.

    Args:
      key: Used once.
      dataset: Arrays of `N` transitions.
      batch_size: Number of transitions, B.

    Returns:
      A batch in which `discount` is 0 at true ends and 1 elsewhere, time-outs included.
    """
    index = jax.random.randint(key, (batch_size,), 0, dataset.size)
    return Transition(
        observation=dataset.observation[index],
        action=dataset.action[index],
        reward=dataset.reward[index],
        discount=1.0 - dataset.terminal[index].astype(dataset.reward.dtype),
        next_observation=dataset.next_observation[index],
    )
