"""PushT: chunks of actions from one state, where there is more than one way on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.studies.plans import play, plots
from jdql.envs import pusht
from jdql.report.plots import save
from jdql.runtime import trained
from jdql.runtime.trained import Trained

EPISODES = 20  # whose first steps are searched
STEPS = 64  # of each
SEARCHED = 32  # chunks at each state
DRAWN = 100  # at the states that are drawn
PANELS = 3


class Crossroads(NamedTuple):
    """A state of an episode and how far its chunks spread.

    Attributes:
      episode: its number.
      step: of the episode.
      seen: [C, O], the last observations.
      spread: of chunks, in pixels.
    """

    episode: int
    step: int
    seen: NDArray[np.float32]
    spread: float


def pose(observation: ArrayLike) -> NDArray[np.float64]:
    """The block's x, y and angle [3], from the nine points of an observation [20].

    The rotation and the translation that bring its points nearest to those seen, which
    have a closed form in the plane.
    """
    seen = np.asarray(observation, np.float64)[:-2].reshape(-1, 2)
    middle, own = seen.mean(0), pusht.NINE.mean(0)
    a, b = pusht.NINE - own, seen - middle
    angle = np.arctan2(np.sum(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]), np.sum(a * b))
    moved = pusht.keypoints([*middle, angle], -own[None])[0]
    return np.array([*moved, angle])


def history(seen: NDArray[np.floating], step: int, count: int) -> NDArray[np.floating]:
    """The last `count` of the observations [T, O] up to a step, the first repeated."""
    return seen[np.maximum(np.arange(step - count + 1, step + 1), 0)]


def crossroads(policy: Trained, whole: Trained) -> list[Crossroads]:
    """Of each episode the state in its first steps whose chunks spread most.

    States are those where the policy plans; episodes come with the greatest first.

    Args:
      policy: what plays.
      whole: the same, whose chunks have all actions that it predicts.
    """
    count, every = policy.config.agent.observed, policy.config.agent.executed
    chunks = play.drawer(whole, SEARCHED)
    episodes = play.policy(policy, EPISODES)(policy.learned, STEPS)
    key = jax.random.key(policy.seed)
    best = []
    for number, episode in enumerate(episodes):
        found = []
        for step in range(0, len(episode.reward), every):
            seen = history(episode.seen, step, count)
            spread = play.spread(chunks(seen, jax.random.fold_in(key, step)))
            found.append(Crossroads(number, step, seen, spread))
        best.append(max(found, key=lambda state: state.spread))
    return sorted(best, key=lambda state: -state.spread)


def draw(folder: Path, step: str, out: Path, log: Callable[[str], None]) -> list[Path]:
    """Draws chunks at the states where they spread most.

    Args:
      folder: a run of `diffusion_policy` on PushT.
      step: "last", "best" or the number of a kept checkpoint.
      out: the folder of the figure.
      log: receives a line for each state.

    Returns:
      The files that were written.

    Raises:
      ValueError, FileNotFoundError: there is no such run, or it has no checkpoint.
    """
    policy = trained.load(folder, step)
    agent = policy.config.agent
    whole = trained.load(folder, step, executed=agent.horizon - agent.observed + 1)
    chosen = crossroads(policy, whole)[:PANELS]
    chunks = play.drawer(whole, DRAWN)
    panels = []
    for state in chosen:
        drawn = chunks(state.seen, jax.random.key(state.step))
        one = play.sides(drawn)
        title = f"episode {state.episode}, step {state.step}"
        log(
            f"{title}: chunks spread by {state.spread:.0f} pixels, "
            f"{100 * one.mean():.0f} % of them to one side"
        )
        here = state.seen[-1]
        panels.append(plots.Board(title, pose(here), here[-2:], drawn, one))
    note = (
        f"{policy.config.name}, {policy.step:,} updates. Of the first {STEPS} steps of "
        f"{EPISODES} episodes, the states whose {DRAWN} chunks spread most, one each. "
        "Grey: the block; green: its goal; black: the agent. Colours: to which side of "
        "their mean chunks lie."
    )
    return save(plots.boards(panels, note), out / "plans_pusht")
