"""PushT with the observation and the starts of Diffusion Policy (Chi et al. 2023).

Importing this module registers the environment `jdql/PushT-v0`, which needs the package
gym-pusht (`pip install 'jdql[pusht]'`).

An agent, a disc, pushes a block in the shape of a T until it covers its goal.  An
action is the position in [0, 512]^2 to which a controller drives the agent for a tenth
of a second.  The reward is `min(1, coverage / 0.95)`, coverage being the share of the
goal that the block lies on; an episode ends above 0.95, or after 300 steps.  An
episode's score is its highest reward (`EvalConfig.score = "peak"`).

gym-pusht has the physics, to the last digit.  What it lacks stands here:

- the authors' observation, nine points of the block and the agent's position, 20
  numbers; gym-pusht's has the eight corners, 18 numbers (`keypoints="corners"`);
- the authors' starts: they draw them with NumPy's `RandomState`, gym-pusht with another
  generator, so that its seed 100000 is not theirs;
- starting in a given state.  Where the agent turns the block, the block's position
  changes unless its angle is set first.  Starts are set the other way round, here as by
  the authors (`legacy=True` in their evaluation); states that are asked for are not.
"""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike

from jdql.checks import one_of

ENV_ID = "jdql/PushT-v0"
STEPS = 300  # of an episode
SIZE = 512.0  # of the square, in pixels
# Points of the block [P, 2] in its own frame, in pixels.  The authors' nine are those
# that their recordings hold: recorded keypoints, moved back by the recorded pose, are
# these to 2e-5 where nothing touches the block.
NINE = np.array(
    [
        [9.269787, 90.040974],
        [-60.983472, -1.186730],
        [60.912756, -1.393364],
        [-0.270503, 25.543625],
        [-14.064927, 122.815854],
        [39.002738, 32.857404],
        [-39.966414, 32.729656],
        [-16.824344, 62.863179],
        [23.541461, -1.700288],
    ]
)
_BAR = [[-60.0, 0.0], [60.0, 0.0], [60.0, 30.0], [-60.0, 30.0]]
_STEM = [[-15.0, 30.0], [15.0, 30.0], [15.0, 120.0], [-15.0, 120.0]]
KEYPOINTS = {"nine": NINE, "corners": np.array(_BAR + _STEM)}


def keypoints(pose: ArrayLike, points: np.ndarray = NINE) -> np.ndarray:
    """Where points of the block are: R(angle) point + position.

    Args:
      pose: [*B, 3], x and y in pixels and the angle in radians.
      points: [P, 2] in the block's frame.

    Returns:
      [*B, P, 2], in pixels.
    """
    pose = np.asarray(pose, np.float64)[..., None, :]
    cos, sin = np.cos(pose[..., 2]), np.sin(pose[..., 2])
    x, y = points[:, 0], points[:, 1]
    turned = np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
    return turned + pose[..., :2]


def observe(state: ArrayLike, points: np.ndarray = NINE) -> np.ndarray:
    """What a policy sees of states: the block's points, then the agent's position.

    Args:
      state: [*B, 5]: the agent's x and y, the block's x, y and angle.
      points: [P, 2] in the block's frame.

    Returns:
      [*B, 2 P + 2], in pixels.
    """
    state = np.asarray(state, np.float64)
    seen = keypoints(state[..., 2:], points)
    flat = seen.reshape(*state.shape[:-1], 2 * len(points))
    return np.concatenate([flat, state[..., :2]], axis=-1)


def start(seed: int) -> np.ndarray:
    """The authors' start of the episode with that seed, a state [5]."""
    # Their generator, which NumPy keeps for such a purpose alone.
    generator = np.random.RandomState(seed)
    agent = generator.randint(50, 450), generator.randint(50, 450)
    block = generator.randint(100, 400), generator.randint(100, 400)
    return np.array([*agent, *block, generator.randn() * 2 * np.pi - np.pi])


class PushT(gymnasium.Wrapper):
    """The observation and the starts of Diffusion Policy, around gym-pusht's physics.

    `reset(options={"state": [5]})` starts in the state that it is given.
    """

    def __init__(self, env: gymnasium.Env, points: np.ndarray) -> None:
        """Takes gym-pusht's environment of states, and points [P, 2] of the block."""
        super().__init__(env)
        self._points = points
        # Points of a block at the wall may lie a little outside the square.
        size = (2 * len(points) + 2,)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, size, np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; without a seed, at one that the last seed leads to."""
        base: Any = self.env.unwrapped
        if seed is None:
            seed = int(base.np_random.integers(2**31))
        wanted = (options or {}).get("state")
        # Here gym-pusht sets the block's position first, as the authors' evaluation.
        begun = {"reset_to_state": start(seed)} if wanted is None else None
        state, info = self.env.reset(seed=seed, options=begun)
        if wanted is not None:
            state = _set_state(base, wanted)
        return observe(state, self._points), info

    def step(
        self, action: np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Drives the agent towards `action` [2] for a tenth of a second."""
        state, reward, terminated, truncated, info = self.env.step(action)
        seen = observe(state, self._points)
        return seen, float(reward), bool(terminated), truncated, info


def _set_state(base: Any, state: ArrayLike) -> np.ndarray:
    """Puts agent and block where they are to be; returns the state that they are in."""
    wanted = np.asarray(state, np.float64)
    base._setup()  # nothing moves any more
    base.agent.position = wanted[:2].tolist()
    base.block.angle = float(wanted[4])
    base.block.position = wanted[2:4].tolist()
    base.space.step(base.dt)  # the recordings begin with such a step
    return base.get_obs()


def make_env(keypoints: str = "nine", **kwargs: Any) -> gymnasium.Env:
    """The environment, without its limit of steps.

    Args:
      keypoints: which points of the block are seen: the authors' "nine", or the eight
        "corners" of gym-pusht, as in LeRobot's recordings.
      **kwargs: of gym-pusht's environment.

    Raises:
      ValueError: there are no such points.
      ModuleNotFoundError: gym-pusht is not installed.
    """
    points = one_of("keypoints", keypoints, KEYPOINTS)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets on stdout
    from gym_pusht.envs.pusht import PushTEnv

    return PushT(PushTEnv(obs_type="state", **kwargs), points)


if ENV_ID not in gymnasium.registry:
    gymnasium.register(
        ENV_ID, entry_point=f"{__name__}:make_env", max_episode_steps=STEPS
    )
