"""The bandit's figures: one square panel a method, the modes' circles in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jdql.envs import bandit
from jdql.report.plots import COLOURS, heading, styled

NEAR, FAR = 1.25, 2.6  # half the width of a panel, and of one with distant actions
FAR_SHARE = 0.02  # of the actions outside, from which on a panel is wide
SIDE = 2.35  # inches
INK = "#333333"


class Scatter(NamedTuple):
    """One panel.

    Attributes:
      title: above it.
      subtitle: below the title.
      actions: `[N, 2]`.
      colours: one for all the actions, or one for each.
      labelled: whether the modes' mean rewards are written beside them.
    """

    title: str
    subtitle: str
    actions: NDArray[np.floating]
    colours: Any = COLOURS[0]
    labelled: bool = False


def by_mode(actions: NDArray[np.floating]) -> list[str]:
    """The colour of the nearest mode, for each of the actions [N, 2]."""
    centres = np.array([mode.centre for mode in bandit.MODES])
    distance = np.linalg.norm(actions[:, None] - centres, axis=-1)
    return [COLOURS[i] for i in distance.argmin(axis=1)]


def draw(rows: Sequence[Sequence[Scatter]], note: str) -> Any:
    """Draws rows of panels.

    Args:
      rows: of equal length.
      note: one line below all of them.

    Returns:
      A matplotlib figure, to be given to `jdql.report.plots.save`.
    """
    with styled():
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        height, width = len(rows), len(rows[0])
        figure = Figure(
            figsize=(SIDE * width + 0.3, (SIDE + 0.42) * height + 0.35),
            layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06),
        )
        axes = figure.subplots(height, width, squeeze=False)
        for i, row in enumerate(rows):
            for j, scatter in enumerate(row):
                axis = axes[i][j]
                _panel(axis, scatter)
                if j == 0:
                    axis.set_ylabel("action, second component")
                if i == height - 1:
                    axis.set_xlabel("action, first component")
        figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color="#666666")
    return figure


def _panel(axis: Any, scatter: Scatter) -> None:
    from matplotlib.patches import Circle

    actions = scatter.actions
    outside = (np.abs(actions) > NEAR).any(axis=1).mean()
    limit = FAR if outside > FAR_SHARE else NEAR
    heading(axis, scatter.title, scatter.subtitle)
    for mode in bandit.MODES:
        axis.add_patch(
            Circle(mode.centre, bandit.RADIUS, fill=False, ec="#888888", lw=0.7, ls=":")
        )
        if scatter.labelled:
            x, y = mode.centre
            axis.annotate(
                f"$r$ = {mode.reward:g}",
                (x, y - np.sign(y) * 0.3),
                ha="center",
                va="center",
                fontsize=9,
            )
    axis.scatter(
        actions[:, 0],
        actions[:, 1],
        s=7 if len(actions) > 300 else 14,
        c=scatter.colours,
        alpha=0.35 if len(actions) > 300 else 0.5,
        linewidths=0,
        rasterized=True,
    )
    ticks = (-2, -1, 0, 1, 2) if limit == FAR else (-1, 0, 1)
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=ticks, yticks=ticks)
    axis.set_aspect("equal")
