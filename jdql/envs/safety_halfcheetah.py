"""NeoRL-2's SafetyHalfCheetah: HalfCheetah with its position seen and a speed limit.

Importing this module registers the environment `jdql/SafetyHalfCheetah-v0`.

Physics, start and length of an episode are those of Gymnasium's HalfCheetah-v5, which
agree with the v4 that the benchmark was recorded in.  An observation is the whole
state, qpos [9] and qvel [9], x position first.  The reward is dx/dt - 0.1 |a|^2 with
dt = 0.05 s, and -100 in its place on a step that is faster than 3.2096 m/s.  An episode
never terminates; it is cut after 1000 steps.

The published recordings (polixir/neorl2_dataset) keep the episodes without a single
step above the limit: no penalty is in the data.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

ENV_ID = "jdql/SafetyHalfCheetah-v0"
SPEED_LIMIT = 3.2096  # m/s, of the mean speed in a step
PENALTY = -100.0
STEPS = 1000  # of an episode
STEP_SECONDS = 0.05
# Of `cautious`: the quantile of the data's speeds, and the price of a m/s above it.
CAUTION, CAUTION_PRICE = 0.95, 10.0


class SpeedLimit(gymnasium.Wrapper):
    """Replaces the reward of a step above the limit; needs `x_velocity` in `info`."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Steps; `info["too_fast"]` says whether the limit was broken."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        too_fast = bool(info["x_velocity"] > SPEED_LIMIT)
        reward = PENALTY if too_fast else float(reward)
        return observation, reward, terminated, truncated, info | {"too_fast": too_fast}


def make_env(**kwargs: Any) -> gymnasium.Env:
    """The environment, without its limit of steps; kwargs go to HalfCheetah-v5."""
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

    return SpeedLimit(
        HalfCheetahEnv(exclude_current_positions_from_observation=False, **kwargs)
    )


def cautious(dataset: Any, training: Any) -> Any:
    """Rewards with a tighter, softer limit: `data.reward` can name this function.

    The recordings never break the limit, so a critic cannot know of it.  Speed above
    the 95 % quantile of the training data costs ten times what it earns:
    `r - 10 max(0, dx/dt - quantile)`.

    Args:
      dataset: With raw observations; its rewards are replaced.
      training: The data whose quantile it is, likewise.
    """
    speed, known = (
        (data.next_observation[:, 0] - data.observation[:, 0]) / STEP_SECONDS
        for data in (dataset, training)
    )
    excess = np.maximum(0.0, speed - np.quantile(known, CAUTION))
    reward = dataset.reward - CAUTION_PRICE * excess
    return dataset._replace(reward=reward.astype(np.float32))


def random_play(size: int = 500, seed: int = 0) -> dict[str, np.ndarray]:
    """Random actions in the environment: a little data that needs no download.

    Args:
      size: Number of transitions N, in episodes of 100.
      seed: Of the actions and the starts.

    Returns:
      Arrays in the layout of `jdql.data.npz`: `observations` and `next_observations`
      [N, 18], `actions` [N, 6], `rewards`, `terminals` (none) and `timeouts` [N].
    """
    env = make_env()
    generator = np.random.default_rng(seed)
    rows = []
    for step in range(size):
        if step % 100 == 0:
            observation, _ = env.reset(seed=seed + step)
        action = generator.uniform(-1, 1, 6).astype(np.float32)
        following, reward, *_ = env.step(action)
        rows.append((observation, action, reward, following))
        observation = following
    env.close()
    observations, actions, rewards, next_observations = map(
        np.array, zip(*rows, strict=True)
    )
    return {
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "next_observations": next_observations,
        "terminals": np.zeros(size, bool),
        "timeouts": np.arange(1, size + 1) % 100 == 0,
    }


if ENV_ID not in gymnasium.registry:
    gymnasium.register(
        ENV_ID, entry_point=f"{__name__}:make_env", max_episode_steps=STEPS
    )
