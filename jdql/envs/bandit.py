"""The 2-D bandit of the Diffusion-QL paper: four modes of behaviour, four rewards.

Importing this module registers the environment `jdql/Bandit-v0`.

The paper's authors have data only.  The environment is this project's own: an action
within three standard deviations of a mode's centre earns that mode's mean reward
without noise, any other action earns 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import ArrayLike


class Mode(NamedTuple):
    """One cluster of behaviour: its centre [2] and its mean reward."""

    name: str
    centre: tuple[float, float]
    reward: float


MODES = (
    Mode("left up", (-0.8, 0.8), 3.0),
    Mode("left bottom", (-0.8, -0.8), 0.0),
    Mode("right up", (0.8, 0.8), 1.5),
    Mode("right bottom", (0.8, -0.8), 5.0),
)
STD = 0.05  # of the actions around a centre
REWARD_STD = 0.5
RADIUS = 3 * STD  # an action this near a centre counts as that mode's
SIZE = 10_000
SEED = 2022
ENV_ID = "jdql/Bandit-v0"


def dataset(
    size: int = SIZE, seed: int = SEED, rewards: bool = True
) -> dict[str, np.ndarray]:
    """The behaviour data: equally many actions around every centre.

    Actions are normal with standard deviation 0.05, clipped to [-1, 1]; a reward is its
    mode's mean plus 0.5 N(0, 1).  Observations are two zeros; every transition ends.

    Args:
      size: Number of transitions N, a multiple of four.
      seed: Of the noise.
      rewards: False makes every reward 0, for behaviour cloning.

    Returns:
      Arrays in the layout of `jdql.data.npz`: `observations` [N, 2], `actions` [N, 2],
      `rewards` [N], `terminals` [N].

    Raises:
      ValueError: size is not a positive multiple of four.
    """
    if size < 1 or size % len(MODES):
        raise ValueError(f"size must be a positive multiple of 4, it is {size}")
    generator = np.random.default_rng(seed)
    mode = np.repeat(np.arange(len(MODES)), size // len(MODES))
    centres = np.array([m.centre for m in MODES])
    actions = centres[mode] + STD * generator.standard_normal((size, 2))
    noise = generator.standard_normal(size)
    means = np.array([m.reward for m in MODES])[mode]
    return {
        "observations": np.zeros((size, 2), np.float32),
        "actions": np.clip(actions, -1.0, 1.0).astype(np.float32),
        "rewards": ((means + REWARD_STD * noise) * rewards).astype(np.float32),
        "terminals": np.ones(size, bool),
    }


def cloning() -> dict[str, np.ndarray]:
    """The data with rewards 0, as `jdql.envs.bandit:cloning` in a config."""
    return dataset(rewards=False)


def _near(actions: ArrayLike) -> np.ndarray:
    """Whether actions [..., 2] are within `RADIUS` of each mode, [..., 4]."""
    centres = np.array([m.centre for m in MODES])
    offset = np.asarray(actions, np.float64)[..., None, :] - centres
    return np.linalg.norm(offset, axis=-1) <= RADIUS


def mode_shares(actions: ArrayLike) -> np.ndarray:
    """Share of the actions [N, 2] that is near each mode, [4] in the order of `MODES`.

    The rest to 1 is near none.
    """
    return _near(actions).mean(axis=0)


def true_reward(action: ArrayLike) -> float:
    """The environment's reward of one action [2]."""
    return float(_near(action) @ np.array([m.reward for m in MODES]))


class Bandit(gymnasium.Env):
    """One step, then the episode ends; see the module's docstring for the reward."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; the observation is two zeros."""
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Ends the episode with the reward of the action."""
        return np.zeros(2, np.float32), true_reward(action), True, False, {}


if ENV_ID not in gymnasium.registry:
    gymnasium.register(ENV_ID, entry_point=f"{__name__}:Bandit")
