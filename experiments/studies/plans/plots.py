"""The pictures of plans: over a maze, over PushT's board, around the obstacle."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jdql.envs import pusht
from jdql.envs import two_route as toy
from jdql.report.plots import COLOURS, heading, styled
from jdql.report.statistics import standard_error

SOFT, WALL, PALE = "#666666", "#D9D9D9", "#BBBBBB"
BLUE, RED, GREEN, PURPLE = COLOURS[:4]
TIME = "viridis"  # from the first step of a plan to its last
PATHS = 50  # in a panel
GOAL_POSE = (256.0, 256.0, np.pi / 4)  # of PushT's block


class Board(NamedTuple):
    """One state of PushT, and the chunks from there.

    Attributes:
      title: of the panel.
      pose: of the block, [3].
      agent: its position, [2].
      chunks: [N, h, 2], in pixels.
      one: which of them lie to one side, [N].
    """

    title: str
    pose: NDArray[np.floating]
    agent: NDArray[np.floating]
    chunks: NDArray[np.floating]
    one: NDArray[np.bool_]


# Mazes --------------------------------------------------------------------------------


def denoising(
    scene: Any,
    states: NDArray[np.floating],
    numbers: Sequence[int],
    steps: int,
    note: str,
) -> Any:
    """One plan [P, H, 2] in P steps of its chain, a panel each.

    Args:
      scene: `experiments.studies.plans.maze.Scene`.
      states: positions.
      numbers: of the steps, 0 being noise.
      steps: of the whole chain.
      note: one line below.

    Returns:
      A matplotlib figure.
    """
    rows, columns = scene.maze.walls.shape
    with styled():
        figure, axes = _row(len(states), note, 1.6, rows / columns)
        for axis, state, number in zip(axes, states, numbers, strict=True):
            _maze(axis, scene)
            _plan(axis, state)
            axis.set_title(_stage(number, steps), loc="left", fontsize=8.5)
    return figure


def _stage(number: int, steps: int) -> str:
    if number == 0:
        return "noise"
    return "the plan" if number == steps else f"after {number} of {steps} steps"


def animate(
    scene: Any,
    states: NDArray[np.floating],
    numbers: Sequence[int],
    steps: int,
    path: Path,
) -> None:
    """The same as a GIF, which rests on the plan; see `denoising`."""
    from matplotlib.animation import PillowWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = scene.maze.walls.shape
    with styled():
        figure = Figure(figsize=(3, 3 * rows / columns + 0.3), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        writer = PillowWriter(fps=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writer.saving(figure, str(path), dpi=80):
            for state, number in zip(states, numbers, strict=True):
                axis.clear()
                _maze(axis, scene)
                _plan(axis, state)
                axis.set_title(_stage(number, steps), loc="left", fontsize=9)
                for _ in range(15 if number == steps else 1):
                    writer.grab_frame()


def fan(
    scene: Any, plans: NDArray[np.floating], value: NDArray[np.integer], note: str
) -> Any:
    """Many plans [N, H, 2] from one state, coloured by what they promise, [N].

    Args:
      scene: `experiments.studies.plans.maze.Scene`.
      plans: positions.
      value: the reward that each promises.
      note: one line below.

    Returns:
      A matplotlib figure.
    """
    rows, columns = scene.maze.walls.shape
    with styled():
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        figure, (axis,) = _row(1, note, 4.2, 0.85 * rows / columns)
        _maze(axis, scene)
        low, high = int(np.min(value)), int(np.max(value))
        colours = ScalarMappable(Normalize(low, max(high, low + 1)), TIME)
        for plan, reward in zip(plans, value, strict=True):
            axis.plot(*plan.T, color=colours.to_rgba(reward), lw=0.8, alpha=0.7)
        bar = figure.colorbar(colours, ax=axis, shrink=0.8)
        bar.set_label("steps of the plan within 0.5 of the goal")
        bar.outline.set_visible(False)
        _ends(axis, scene)
    return figure


def _maze(axis: Any, scene: Any) -> None:
    """Walls, and nothing but walls outside."""
    rows, columns = scene.maze.walls.shape
    extent = (-columns / 2, columns / 2, -rows / 2, rows / 2)
    walls = np.where(scene.maze.walls, 1.0, np.nan)
    from matplotlib.colors import ListedColormap

    axis.imshow(walls, cmap=ListedColormap([WALL]), extent=extent, zorder=0)
    _bare(axis)
    margin = 0.6  # of the outer wall nothing more is seen
    axis.set_xlim(extent[0] + margin, extent[1] - margin)
    axis.set_ylim(extent[2] + margin, extent[3] - margin)
    _ends(axis, scene)


def _ends(axis: Any, scene: Any) -> None:
    """Start, a disc, and goal, a star."""
    look = {"mec": "white", "mew": 0.8, "zorder": 5, "clip_on": False}
    axis.plot(*scene.start, "o", color=BLUE, ms=7, **look)
    axis.plot(*scene.goal, "*", color=RED, ms=12, **look)


def _plan(axis: Any, plan: NDArray[np.floating]) -> None:
    """A plan [H, 2]: a thin line, and its steps coloured by time."""
    axis.plot(*plan.T, color=PALE, lw=0.3, zorder=2)
    time = np.arange(len(plan))
    axis.scatter(*plan.T, c=time, cmap=TIME, s=6, linewidths=0, zorder=3)


# PushT --------------------------------------------------------------------------------


def boards(panels: Sequence[Board], note: str) -> Any:
    """Chunks over the block and its goal, a panel for each state.

    Args:
      panels: at least one.
      note: one line below.

    Returns:
      A matplotlib figure.
    """
    with styled():
        figure, axes = _row(len(panels), note, 2.9, 1.0)
        for axis, panel in zip(axes, panels, strict=True):
            _block(axis, GOAL_POSE, "#CFE8D5", 0)
            _block(axis, panel.pose, "#9AA5B1", 1)
            for chunk, one in zip(panel.chunks, panel.one, strict=True):
                colour = BLUE if one else RED
                axis.plot(*chunk.T, color=colour, lw=0.6, alpha=0.5, zorder=3)
                axis.plot(*chunk[-1], ".", color=colour, ms=2.5, zorder=4)
            axis.plot(*panel.agent, "o", color="#222222", ms=8, mec="white", zorder=5)
            _bare(axis)
            axis.set_xlim(0, pusht.SIZE)
            axis.set_ylim(pusht.SIZE, 0)  # as the simulator draws it
            axis.set_aspect("equal")
            axis.set_title(panel.title, loc="left", fontsize=9)
            for spine in axis.spines.values():
                spine.set(visible=True, color=WALL)
    return figure


def _block(axis: Any, pose: Any, colour: str, zorder: float) -> None:
    """The two bars of the T."""
    from matplotlib.patches import Polygon

    corners = pusht.keypoints(pose, pusht.KEYPOINTS["corners"]).reshape(2, 4, 2)
    for bar in corners:
        axis.add_patch(Polygon(bar, fc=colour, ec=colour, zorder=zorder))


# Two routes ---------------------------------------------------------------------------


def two_route(outcomes: Sequence[Any], mean: NDArray[np.floating], note: str) -> Any:
    """Paths around the obstacle, a panel each: blue left, red right, grey into it.

    Args:
      outcomes: `experiments.studies.plans.two_route.Outcome`s, the last one of mean
        actions.
      mean: the mean action at the start, [2].
      note: one line below.

    Returns:
      A matplotlib figure.
    """
    with styled():
        figure, axes = _row(len(outcomes), note, 2.2, 1.21, titles=0.75)
        for axis, result in zip(axes, outcomes, strict=True):
            _routes(axis, result)
            left, right = (100 * np.mean(result.routes == side) for side in (-1, 1))
            shares = f"{left + right:.0f} % pass: {left:.0f} left, {right:.0f} right"
            heading(axis, result.label, shares)
            over = 100 * np.mean(result.changes > 0)
            axis.set_xlabel(f"{over:.0f} % change sides", fontsize=8, color=SOFT)
        end = np.array(toy.START) + toy.STEP * mean
        arrow = {"arrowstyle": "-|>", "lw": 2, "color": PURPLE, "shrinkA": 0}
        axes[-1].annotate("", end, toy.START, arrowprops=arrow, zorder=6)
    return figure


def _routes(axis: Any, result: Any) -> None:
    """At most `PATHS` paths; those that fail end in a cross."""
    from matplotlib.patches import Circle

    axis.add_patch(Circle((0, 0), toy.RADIUS, fc=WALL, ec="none", zorder=0))
    axis.axhline(toy.GOAL, color=GREEN, lw=1, zorder=1)
    colours = {-1: BLUE, 0: SOFT, 1: RED}
    for path, side in list(zip(result.paths, result.routes, strict=True))[:PATHS]:
        axis.plot(*path.T, color=colours[int(side)], lw=0.6, alpha=0.45, zorder=2)
        if side == 0:
            axis.plot(*path[-1], "x", color=SOFT, ms=4, mew=0.8, zorder=3)
    axis.plot(*toy.START, "o", color="#222222", ms=5, mec="white", zorder=5)
    _bare(axis)
    axis.set_xlim(-1.05, 1.05)
    axis.set_ylim(-1.2, 1.35)
    axis.set_aspect("equal")


# Returns ------------------------------------------------------------------------------


def returns(
    points: Sequence[Any], data: NDArray[np.floating], unit: str, note: str
) -> Any:
    """What came of the returns asked for: in their units, and as a score.

    Args:
      points: `experiments.studies.plans.returns.Point`s.
      data: the returns of the data's episodes, in the same units.
      unit: of the scores.
      note: one line below.

    Returns:
      A matplotlib figure.
    """
    asked = [point.target for point in points]
    with styled():
        figure, (left, right) = _row(2, note, 3.6, 0.75, titles=0.6)
        _bars(left, asked, [point.reached for point in points], BLUE)
        _bars(right, asked, [point.score for point in points], RED)
        ends = min([*asked, np.min(data)]), max([*asked, np.max(data)])
        left.plot(ends, ends, "--", color=SOFT, lw=1, label="what was asked for")
        left.legend(loc="best", fontsize=8)
        heading(left, "Reached", "in the units of what is asked for")
        heading(right, "Score", "of the same episodes")
        left.set_ylabel("return reached")
        right.set_ylabel(unit)
        for axis in (left, right):
            axis.set_xlabel("return asked for")
            _ticks(axis, data)
    return figure


def _bars(axis: Any, x: Sequence[float], values: Sequence[Any], colour: str) -> None:
    """Means and their standard errors, and every episode as a dot."""
    means = [np.mean(each) for each in values]
    errors = [standard_error(each) for each in values]
    for at, each in zip(x, values, strict=True):
        axis.plot([at] * len(each), each, "o", color=colour, ms=3, alpha=0.25, mew=0)
    axis.errorbar(x, means, errors, fmt="o-", color=colour, lw=2, ms=5, capsize=3)


def _ticks(axis: Any, data: NDArray[np.floating]) -> None:
    """A short stroke on the axis for each of the data's returns, a thousand at most."""
    few = data if len(data) <= 1_000 else np.quantile(data, np.linspace(0, 1, 1_000))
    look = {"color": GREEN, "lw": 0.5, "alpha": 0.3}
    axis.vlines(few, 0, 0.04, transform=axis.get_xaxis_transform(), **look)


# Figures ------------------------------------------------------------------------------


def _row(
    panels: int, note: str, width: float, aspect: float, titles: float = 0.3
) -> tuple[Any, list[Any]]:
    """Panels of that width in inches in a row, and a line of text below them."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = textwrap.wrap(note, int(18 * width * panels))
    figure = Figure(
        figsize=(
            width * panels + 0.1,
            width * aspect + titles + 0.2 + 0.15 * len(lines),
        ),
        layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06),
    )
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7.5, color=SOFT)
    return figure, list(figure.subplots(1, panels, squeeze=False).ravel())


def _bare(axis: Any) -> None:
    """No ticks, no grid, no frame: places are seen, not read."""
    axis.grid(False)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
