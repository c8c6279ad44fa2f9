"""Observation spaces that are not one vector, made into one.

A goal environment gives a dictionary.  Its flat vector is `achieved_goal`,
`observation`, `desired_goal`, in this order, of those entries that are vectors:

- AntMaze: 2 + 27 + 2.  The first 29 are D4RL's AntMaze observation (the ant's position,
  then the rest); the goal is appended because it differs between episodes.
- PointMaze: 2 + 4 + 2.
- Kitchen: its goals are themselves dictionaries and do not vary, so `observation`.

Datasets and environments must be flattened alike: both go through `vector_keys`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GOAL_KEYS = ("achieved_goal", "observation", "desired_goal")


def vector_keys(space: Any, name: str = "the environment") -> tuple[str, ...]:
    """The entries that make up the flat observation; empty if it is a vector already.

    Args:
      space: A Gymnasium observation space.
      name: How an error calls its owner.

    Raises:
      ValueError: the space is made of pixels, is discrete, or cannot be flattened.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        keys = tuple(k for k in GOAL_KEYS if _is_vector(space.spaces.get(k)))
        if "observation" in keys:
            return keys
        raise ValueError(
            f"{name} has dictionary observations with the keys "
            f"{', '.join(space.spaces)}; jdql reads vectors, and dictionaries that "
            "have a vector under 'observation'"
        )
    if _is_vector(space):
        return ()
    if isinstance(space, spaces.Box) and len(space.shape) in (2, 3):
        raise ValueError(
            f"{name} has pixel observations of shape {space.shape}; jdql trains on "
            "state vectors only"
        )
    raise ValueError(
        f"{name} has observations of the kind {space}; jdql trains on vectors (Box)"
    )


def flatten(observation: Any, keys: tuple[str, ...]) -> np.ndarray:
    """The vectors [..., O] of one observation, or of a stack of them.

    Args:
      observation: An array, or a dictionary of arrays with equal leading shape.
      keys: What `vector_keys` says of its space.
    """
    if not keys:
        return np.asarray(observation)
    return np.concatenate([np.asarray(observation[key]) for key in keys], axis=-1)


def dimension(space: Any, keys: tuple[str, ...]) -> int:
    """The length O of the flat observation."""
    if not keys:
        return int(space.shape[0])
    return sum(int(space[key].shape[0]) for key in keys)


def _is_vector(space: Any) -> bool:
    from gymnasium import spaces

    return isinstance(space, spaces.Box) and len(space.shape) == 1
