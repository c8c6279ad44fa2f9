"""Random data, and an environment, of the sizes of the tasks: for trying things out.

Nothing can be learnt from them.  A task whose dataset or simulator needs a download is
run on these in the smoke variant, so that every task can be tried everywhere.
Importing this module registers `jdql/Synthetic-v0`.
"""

from __future__ import annotations

import functools
from typing import Any

import gymnasium
import numpy as np

ENV_ID = "jdql/Synthetic-v0"
LENGTH = 50  # steps of an episode
# Observation and action sizes, as jdql reads the tasks.
SIZES = {
    "halfcheetah": (17, 6),
    "hopper": (11, 3),
    "walker2d": (17, 6),
    "antmaze": (31, 8),
    "pen": (45, 24),
    "kitchen": (59, 9),
    "pusht": (20, 2),
    "pointmaze": (6, 2),
}


def transitions(
    observation_dim: int, action_dim: int, size: int = 1_000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Episodes of noise, in the layout of `jdql.data.npz`.

    Args:
      observation_dim: O.
      action_dim: A.
      size: Number of transitions N.
      seed: Of the noise.

    Returns:
      `observations` [N, O] and `next_observations` [N, O], standard normal; `actions`
      [N, A], uniform in [-1, 1]; `rewards` [N] of 0 and 1; `timeouts` [N] every 50
      steps and at the end; `terminals` [N], none.
    """
    generator = np.random.default_rng(seed)
    shape = (size, observation_dim)
    step = np.arange(1, size + 1)
    return {
        "observations": generator.standard_normal(shape, np.float32),
        "next_observations": generator.standard_normal(shape, np.float32),
        "actions": generator.uniform(-1, 1, (size, action_dim)).astype(np.float32),
        "rewards": generator.integers(0, 2, size).astype(np.float32),
        "terminals": np.zeros(size, bool),
        "timeouts": (step % LENGTH == 0) | (step == size),
    }


# As a config's dataset, `jdql.envs.synthetic:hopper`: noise of a task's sizes.
halfcheetah = functools.partial(transitions, *SIZES["halfcheetah"])
hopper = functools.partial(transitions, *SIZES["hopper"])
walker2d = functools.partial(transitions, *SIZES["walker2d"])
antmaze = functools.partial(transitions, *SIZES["antmaze"])
pen = functools.partial(transitions, *SIZES["pen"])
kitchen = functools.partial(transitions, *SIZES["kitchen"])
pusht = functools.partial(transitions, *SIZES["pusht"])
pointmaze = functools.partial(transitions, *SIZES["pointmaze"])


class Synthetic(gymnasium.Env):
    """Observations are noise; the reward is the mean of the action."""

    def __init__(self, task: str) -> None:
        """Takes the sizes of `task`, a name in `SIZES`."""
        observation_dim, action_dim = SIZES[task]
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (observation_dim,), np.float32
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed)
        return self._observe(), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Rewards the mean of the action; only the time limit ends the episode."""
        return self._observe(), float(np.mean(action)), False, False, {}

    def _observe(self) -> np.ndarray:
        shape = self.observation_space.shape
        return np.asarray(self.np_random.standard_normal(shape), np.float32)


if ENV_ID not in gymnasium.registry:
    gymnasium.register(
        ENV_ID, entry_point=f"{__name__}:Synthetic", max_episode_steps=LENGTH
    )
