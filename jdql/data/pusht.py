"""The demonstrations of PushT that Diffusion Policy's authors recorded.

The low-dimensional part of `pusht_cchi_v7_replay` (github.com/real-stanford/
diffusion_policy), as an .npz file: `action` [N, 2], `keypoint` [N, 9, 2], `state`
[N, 5] and `episode_ends` [206].  An observation is the nine points of the block and the
agent's position, 20 numbers, as `jdql.envs.pusht` gives it.

There are no rewards in it (they are 0 here) and no observation follows an episode's
last action: the last one stands in, and the end counts as a time-out.  All steps are
kept, as the authors keep them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jdql.data import npz
from jdql.data.dataset import Dataset, Source, make_source, make_spec, whole_episodes

FILE = "pusht/pusht_lowdim.npz"
COLUMNS = ("action", "keypoint", "state", "episode_ends")
SIZE = 512.0  # of the square that actions lie in, in pixels
# The authors' split: a twentieth of it is never used.
VALIDATION, TRAINING, SEED = 0.02, 90, 42


def from_columns(arrays: Mapping[str, np.ndarray], name: str) -> Source:
    """The demonstrations in arrays of the authors' names.

    Args:
      arrays: with `COLUMNS`.
      name: becomes the id of the data.
    """
    return _source(_dataset(arrays, arrays["episode_ends"]), name)


def training() -> Source:
    """The 90 episodes that the authors train on, of `FILE`.

    Raises:
      FileNotFoundError: it is not in the shared folder.
      ValueError: it is no such recording.
    """
    arrays = npz.read_arrays(npz.locate(FILE))
    npz.require(arrays, COLUMNS, FILE)
    ends = arrays["episode_ends"]
    _, chosen = split(len(ends))
    lengths = np.diff(ends, prepend=0)
    kept = np.repeat(chosen, lengths)
    selected = {name: arrays[name][kept] for name in COLUMNS if name != "episode_ends"}
    return _source(
        _dataset(selected, np.cumsum(lengths[chosen])), "jdql.data.pusht:training"
    )


def split(
    episodes: int,
    validation: float = VALIDATION,
    training: int | None = TRAINING,
    seed: int = SEED,
) -> tuple[np.ndarray, np.ndarray]:
    """Which episodes the authors validate and train on, two masks [E].

    Args:
      episodes: E.
      validation: the share that is drawn first, at least one episode and at most all
        but one, unless it is 0.
      training: as many of the others are drawn; None takes them all.
      seed: of both draws.
    """
    held_out = np.zeros(episodes, bool)
    if validation > 0:
        count = min(max(1, round(episodes * validation)), episodes - 1)
        held_out[_draw(episodes, count, seed)] = True
    chosen = ~held_out
    others = np.flatnonzero(chosen)
    if training is not None and training < len(others):
        chosen = np.zeros(episodes, bool)
        chosen[others[_draw(len(others), training, seed)]] = True
    return held_out, chosen


def _draw(total: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(total, size=count, replace=False)


def _dataset(arrays: Mapping[str, np.ndarray], ends: Any) -> Dataset:
    steps = len(arrays["action"])
    points = arrays["keypoint"].reshape(steps, -1)
    observation = np.concatenate([points, arrays["state"][:, :2]], axis=1)
    return whole_episodes(observation, arrays["action"], np.zeros(steps), ends)


def _source(dataset: Dataset, name: str) -> Source:
    return make_source(name, dataset, make_spec(dataset, 0.0, SIZE, name=name))
