"""Two routes around an obstacle: where the mean of good actions is a bad action.

Importing this module registers the environment `jdql/TwoRoute-v0`.

A point starts below a disc and is to get above it.  Half of the demonstrations pass on
the left and half on the right, and nothing seen at the start tells which: the mean of
their first actions, which a policy of least squares or one Gaussian learns, leads
straight into the disc.  A policy that draws from the actions' distribution takes either
route, and one that plans chunks stays on the one that it has taken.  After the toy of
Diffusion Policy's introduction (Chi et al. 2023, fig. 3); the numbers are jdql's own.

An observation is the position, an action the displacement in units of `STEP`, each
coordinate in [-1, 1].  The disc has radius `RADIUS` about the origin.  An episode ends
with a reward of 1 at or above `GOAL`, with 0 where a step leads into the disc, and is
cut after 20 steps.

Steps are long, so that the disc is two away.  With short ones a flexible policy of
mean actions wavers, leaves the middle by and by and gets past.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike

ENV_ID = "jdql/TwoRoute-v0"
STEPS = 20  # of an episode
STEP = 0.4  # the largest displacement of a coordinate in a step
START = (0.0, -1.0)
START_STD = 0.03  # of both coordinates
RADIUS = 0.4
GOAL = 1.0  # height
WIDTH = 0.7  # how far to the side the routes lead
CLIMB = 0.7  # vertical part of a demonstrated action
ACTION_STD = 0.1  # of the noise of demonstrated actions
EPISODES = 1_000
SEED = 0


def begin(generator: np.random.Generator) -> np.ndarray:
    """A start, [2]."""
    return np.array(START) + START_STD * generator.standard_normal(2)


def move(position: ArrayLike, action: ArrayLike) -> np.ndarray:
    """Where an action [2] leads from a position [2]; the action is clipped."""
    step = STEP * np.clip(np.asarray(action, np.float64), -1.0, 1.0)
    return np.asarray(position, np.float64) + step


def hits(before: ArrayLike, after: ArrayLike) -> bool:
    """Whether the way from one position to the other leads into the disc."""
    start, way = np.asarray(before), np.asarray(after) - np.asarray(before)
    length = float(way @ way)
    nearest = 0.0 if length == 0 else float(np.clip(-(start @ way) / length, 0, 1))
    return float(np.linalg.norm(start + nearest * way)) < RADIUS


def guide(position: np.ndarray, side: int) -> np.ndarray:
    """The demonstrators' action [2] without noise.

    It climbs by `CLIMB` and steers for x = side WIDTH cos(pi y / 2).

    Args:
      position: [2].
      side: -1 for the left route, 1 for the right one.
    """
    height = min(position[1] + STEP * CLIMB, 1.0)
    aim = side * WIDTH * np.cos(np.pi * height / 2)
    return np.array([np.clip((aim - position[0]) / STEP, -1, 1), CLIMB])


def dataset(episodes: int = EPISODES, seed: int = SEED) -> dict[str, np.ndarray]:
    """Demonstrations, the left and the right route in turn.

    Args:
      episodes: how many.
      seed: of starts and noise.

    Returns:
      Arrays in the layout of `jdql.data.npz`: `observations` and `next_observations`
      [N, 2], `actions` [N, 2], `rewards` [N], 1 at the last step of an episode, and
      `terminals` [N].
    """
    generator = np.random.default_rng(seed)
    rows = [
        row
        for episode in range(episodes)
        for row in _demonstration(generator, 1 if episode % 2 else -1)
    ]
    before, action, reward, after, terminal = map(np.array, zip(*rows, strict=True))
    return {
        "observations": before.astype(np.float32),
        "actions": action.astype(np.float32),
        "rewards": reward.astype(np.float32),
        "next_observations": after.astype(np.float32),
        "terminals": terminal,
    }


def _demonstration(generator: np.random.Generator, side: int) -> list[tuple[Any, ...]]:
    """(position, action, reward, next position, whether it ended) of each step."""
    rows: list[tuple[Any, ...]] = []
    position, done = begin(generator), False
    while not done:
        noise = ACTION_STD * generator.standard_normal(2)
        action = np.clip(guide(position, side) + noise, -1, 1)
        following = move(position, action)
        done = bool(following[1] >= GOAL)
        rows.append((position, action, float(done), following, done))
        position = following
    return rows


class TwoRoute(gymnasium.Env):
    """See the module's docstring; `info["success"]` is whether the goal is reached."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode below the disc."""
        super().reset(seed=seed)
        self._position = begin(self.np_random)
        return self._position.astype(np.float32), {"success": False}

    def step(
        self, action: np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Moves the point; hitting the disc and reaching the goal end the episode."""
        before, self._position = self._position, move(self._position, action)
        hit = hits(before, self._position)
        success = not hit and bool(self._position[1] >= GOAL)
        seen = self._position.astype(np.float32)
        return seen, float(success), hit or success, False, {"success": success}


if ENV_ID not in gymnasium.registry:
    gymnasium.register(
        ENV_ID, entry_point=f"{__name__}:TwoRoute", max_episode_steps=STEPS
    )
