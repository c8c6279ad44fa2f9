"""Diffuser in a maze: a plan out of noise, and the many plans from one state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments.studies.plans import plots
from jdql.collect import mazes
from jdql.config import Config
from jdql.envs import pointmaze
from jdql.envs.pointmaze import Maze
from jdql.report.plots import save
from jdql.runtime import trained
from jdql.runtime.trained import Trained

PANELS = 6  # of the chain
PLANS = 64  # of the fan
FRAMES = 32  # about as many, of the moving picture


class Scene(NamedTuple):
    """Where plans begin and end: positions x, y."""

    maze: Maze
    start: NDArray[np.float64]
    goal: NDArray[np.float64]


def scene_of(config: Config) -> Scene:
    """The maze of a run, from the free cell that is furthest from the goal.

    Raises:
      ValueError: its task is no maze.
    """
    names = [n for n in pointmaze.MAZES if pointmaze.env_id(n) == config.eval.env]
    if not names:
        raise ValueError(
            f"plans are drawn in a maze, and {config.name} has none: give "
            "--config=pointmaze_umaze, pointmaze_medium or pointmaze_large"
        )
    maze = pointmaze.MAZES[names[0]]
    steps = mazes.distances(maze, maze.goal)
    furthest = np.argmax(np.where(np.isfinite(steps), steps, -1))
    start = np.unravel_index(furthest, steps.shape)
    return Scene(maze, pointmaze.centre(maze, start), pointmaze.centre(maze, maze.goal))


def observation(scene: Scene) -> NDArray[np.float32]:
    """What is seen at the start, at rest, [6]."""
    return np.concatenate([scene.start, np.zeros(2), scene.goal]).astype(np.float32)


def chain(
    policy: Trained, seen: NDArray[np.float32], count: int
) -> NDArray[np.floating]:
    """The positions [n + 1, N, H, 2] of plans in every step from noise to plans."""
    model, key = policy.agent.model, jax.random.key(policy.seed)
    here = policy.learned.scaling.observation.forward(jnp.asarray(seen))

    @jax.jit
    def sample(key: Any) -> Any:
        plans = model.chain(policy.learned.own, here, key, count)
        layout = model.layout
        return layout.units.raw_state(plans[..., layout.actions :])[..., :2]

    return np.asarray(sample(key))


def promised(plans: NDArray[np.floating], goal: NDArray[np.floating]) -> Any:
    """The reward that plans [N, H, 2] promise, [N]: their steps within the radius."""
    far = np.linalg.norm(plans - goal, axis=-1)
    return np.sum(far <= pointmaze.RADIUS, axis=-1)


def levels(steps: int, count: int) -> list[int]:
    """At most `count` of the states 0 to `steps` of a chain, with both ends.

    They lie the closer the less noise there is: a plan takes its shape late.
    """
    left = np.linspace(1, 0, count) ** 2
    return sorted({round(steps * (1 - float(share))) for share in left})


def draw(folder: Path, step: str, out: Path, log: Callable[[str], None]) -> list[Path]:
    """Draws the chain, as panels and moving, and the fan of plans.

    Args:
      folder: a run of `diffuser` in a maze.
      step: "last", "best" or the number of a kept checkpoint.
      out: the folder of the figures.
      log: receives a line about the fan.

    Returns:
      The files that were written.

    Raises:
      ValueError, FileNotFoundError: there is no such run, or it has no checkpoint.
    """
    policy = trained.load(folder, step)
    scene = scene_of(policy.config)
    name = f"{policy.config.name}, {policy.step:,} updates"
    states = chain(policy, observation(scene), PLANS)
    one, plans = states[:, 0], states[-1]
    steps = len(states) - 1
    shown = levels(steps, PANELS)
    row = plots.denoising(scene, one[shown], shown, steps, f"{name}. Colour: time.")
    written = save(row, out / "plans_denoising", dpi=120)
    frames = sorted({*range(0, steps, 1 + steps // FRAMES), steps})
    moving = out / "plans_denoising.gif"
    plots.animate(scene, one[frames], frames, steps, moving)
    value = promised(plans, scene.goal)
    log(
        f"{name}: {PLANS} plans of {plans.shape[1]} steps, of which "
        f"{value.mean():.0f} ({value.min()} to {value.max()}) are at the goal"
    )
    fan = plots.fan(scene, plans, value, f"{name}, {PLANS} plans.")
    return [*written, moving, *save(fan, out / "plans_fan")]
