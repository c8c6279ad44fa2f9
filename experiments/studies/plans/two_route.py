"""Two routes: chunks keep to the one that they take, mean actions take neither."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.studies.plans import play, plots
from jdql.config import Config
from jdql.envs import two_route
from jdql.report.plots import save
from jdql.runtime import trained
from jdql.runtime.evaluate import start_seed
from jdql.runtime.trained import Run, Trained

# What is done to the task's own settings, whose chunks have seven actions from now on.
LONG = 8  # T_a, beside 1
HORIZON = 10  # chunks of which so many actions can be carried out, two states seen
EPISODES = 100  # of each seed
DRAWN = 500  # chunks at the start
DEGREE = 5  # of the least-squares polynomial
ASIDE = 0.1  # a position less far aside has taken no route yet

Path2 = NDArray[np.floating]  # positions [T + 1, 2]
Mean = Callable[[NDArray[np.floating]], NDArray[np.floating]]  # [E, 2] -> [E, 2]


class Outcome(NamedTuple):
    """What became of paths.

    Attributes:
      label: of what they are.
      paths: of every episode.
      routes: of each, -1 left, 1 right, 0 neither.
      changes: of each, how often it went over to the other side.
    """

    label: str
    paths: list[Path2]
    routes: NDArray[np.int64]
    changes: NDArray[np.int64]


def sized(config: Config) -> Config:
    """The config with chunks of which `LONG` actions can be carried out."""
    agent = dataclasses.replace(config.agent, horizon=HORIZON, executed=LONG)
    return dataclasses.replace(config, agent=agent)


# Routes -------------------------------------------------------------------------------


def route(path: Path2) -> int:
    """The side on which a path gets past the obstacle: -1 is left, 1 right.

    It is read where the path crosses the height of the obstacle's centre.  0 is a path
    that leads into the obstacle, or not as far.
    """
    steps = list(itertools.pairwise(path))
    if any(two_route.hits(*step) for step in steps):
        return 0
    for (x, y), (x_after, y_after) in steps:
        if y < 0 <= y_after:
            return int(np.sign(x - y * (x_after - x) / (y_after - y)))
    return 0


def changes(path: Path2) -> int:
    """How often a path goes over to the other side on its way to the obstacle."""
    passed = np.cumsum(path[:, 1] >= 0)  # 1 at the first position beside it
    aside = path[(passed <= 1) & (np.abs(path[:, 0]) > ASIDE), 0]
    return int(np.sum(aside[1:] * aside[:-1] < 0))


def until_hit(path: Path2) -> Path2:
    """The path up to the first position that a step through the obstacle leads to."""
    steps = enumerate(itertools.pairwise(path), start=2)
    length = next((n for n, step in steps if two_route.hits(*step)), len(path))
    return path[:length]


def outcome(label: str, paths: Sequence[Path2]) -> Outcome:
    """What became of paths; none goes on behind a hit."""
    paths = [until_hit(path) for path in paths]
    routes = np.array([route(path) for path in paths])
    return Outcome(label, list(paths), routes, np.array([changes(p) for p in paths]))


def path_of(chunk: NDArray[np.floating], start: ArrayLike) -> Path2:
    """The positions [h + 1, 2] that actions [h, 2] lead through from a start."""
    positions = [np.asarray(start, np.float64)]
    for action in chunk:
        positions.append(two_route.move(positions[-1], action))
    return np.stack(positions)


# Mean actions -------------------------------------------------------------------------


def least_squares(
    observations: NDArray[np.floating], actions: NDArray[np.floating]
) -> Mean:
    """The polynomial of the position [N, 2] that fits actions [N, 2] best.

    What minimises a squared error is the mean action, here as near as a polynomial of
    degree `DEGREE` gets to it.
    """
    weights = np.linalg.lstsq(_powers(observations), actions, rcond=None)[0]
    return lambda positions: _powers(positions) @ weights


def _powers(position: NDArray[np.floating]) -> NDArray[np.floating]:
    """The products x^i y^j, i + j at most `DEGREE`, of positions [N, 2]."""
    x, y = np.asarray(position, np.float64).T
    degrees = range(DEGREE + 1)
    return np.stack(
        [x**i * y**j for i in degrees for j in degrees[: DEGREE + 1 - i]], 1
    )


# The figure ---------------------------------------------------------------------------


def draw(folder: Path, step: str, out: Path, log: Callable[[str], None]) -> list[Path]:
    """Plays the policies of a run, prints the table and draws the figure.

    Args:
      folder: a run of `diffusion_policy` on the task.
      step: "last", "best" or the number of a kept checkpoint.
      out: the folder of the figure.
      log: receives the table.

    Returns:
      The files that were written.

    Raises:
      ValueError, FileNotFoundError: there is no such run, or it has no checkpoint.
    """
    run = trained.open_run(folder, step)
    policy = trained.load(folder, step, executed=_longest(run.config))
    data = two_route.dataset()
    mean = least_squares(data["observations"], data["actions"])
    outcomes = [
        outcome("Demonstrations", demonstrations(data)),
        outcome("Chunks at the start", _chunks(policy)),
        *(_played(run, step, count) for count in (_longest(run.config), 1)),
        outcome("Least squares", _mean_paths(run, mean)),
    ]
    log("\n" + table(outcomes))
    note = (
        f"{run.config.name}, {policy.step:,} updates, {len(run.members)} seed(s), "
        f"{EPISODES} episodes each. The disc is the obstacle, the line the goal; "
        "crosses: into the obstacle. Arrow: the mean action at the start."
    )
    action = mean(np.array([two_route.START]))[0]
    return save(
        plots.two_route(outcomes, action, note), out / "plans_two_route", dpi=100
    )


def _longest(config: Config) -> int:
    """`LONG`, or as many actions as a chunk of the run has from now on."""
    return min(LONG, config.agent.horizon - config.agent.observed + 1)


def _chunks(policy: Trained) -> list[Path2]:
    """The paths that chunks at the start would take."""
    start = np.array(two_route.START)
    seen = np.tile(start.astype(np.float32), (policy.config.agent.observed, 1))
    chunks = play.drawer(policy, DRAWN)(seen, jax.random.key(policy.seed))
    return [path_of(chunk, start) for chunk in chunks]


def _played(run: Run, step: str, executed: int) -> Outcome:
    """All seeds of a run, so many actions of a chunk being carried out."""
    paths: list[Path2] = []
    for member in run.members:
        policy = trained.load(run.folder, step, member["seed"], executed=executed)
        paths += [e.seen for e in play.policy(policy, EPISODES)(policy.learned)]
    return outcome(f"Chunks, T_a = {executed}", paths)


def _mean_paths(run: Run, mean: Mean) -> list[Path2]:
    """The paths of a function of positions, from the starts of the policies."""
    where = run.config.eval
    starts = [
        start_seed(where, member["seed"], episode)
        for member in run.members
        for episode in range(EPISODES)
    ]
    played = play.rollout(lambda seen, live: mean(seen), where, starts)
    return [episode.seen for episode in played]


def demonstrations(data: dict[str, NDArray]) -> list[Path2]:
    """The paths of the demonstrations."""
    ends = np.flatnonzero(data["terminals"]) + 1
    seen, after = data["observations"], data["next_observations"]
    bounds = zip([0, *ends[:-1]], ends, strict=True)
    return [np.concatenate([seen[a:b], after[b - 1 : b]]) for a, b in bounds]


def table(outcomes: Sequence[Outcome]) -> str:
    """Who passes and where, and who changes sides: a line for each outcome."""
    lines = [
        f"{'':20}{'paths':>7}{'pass':>10}{'left':>8}{'right':>8}{'change sides':>15}"
    ]
    for label, paths, routes, changed in outcomes:
        shares = [routes != 0, routes < 0, routes > 0, changed > 0]
        cells = "".join(
            f"{100 * np.mean(share):{width}.0f} %"
            for share, width in zip(shares, (8, 6, 6, 13), strict=True)
        )
        lines.append(f"{label:20}{len(paths):7d}{cells}")
    return "\n".join(lines)
