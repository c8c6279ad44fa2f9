"""The figures of the ablations: lines of means, and a dot for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jdql.report.plots import COLOURS, heading, styled

SOFT = "#666666"
MARKERS = "osD^"  # once all colours are used
ZERO_TO = 0.01  # the symmetric logarithmic axis is linear from 0 to here


def steps(points: Mapping[str, Sequence[Any]], note: str) -> Any:
    """Score, and time of an update, against the number of diffusion steps.

    Args:
      points: by task, `experiments.studies.ablations.steps.Point`s.
      note: one line below.

    Returns:
      A matplotlib figure.
    """
    with styled():
        from matplotlib.ticker import LogLocator

        figure, (left, right) = _figure(2, note)
        for colour, (task, line) in zip(COLOURS, points.items(), strict=False):
            T = np.array([point.steps for point in line])
            scores = np.array([point.scores for point in line])
            _with_dots(left, T, scores, colour, task)
            times = [point.milliseconds for point in line]
            right.plot(T, times, "o-", color=colour, lw=2, ms=5, label=task)
        heading(left, "Score", "last evaluation")
        heading(right, "Time of an update", "all seeds together")
        left.set_ylabel("normalised score")
        right.set_ylabel("milliseconds per update")
        right.set_yscale("log")
        for axis in (left, right):
            axis.set_xscale("log", base=2)
            axis.set_xticks(T, [str(t) for t in T])
            axis.minorticks_off()
            axis.set_xlabel("diffusion steps T")
        right.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        right.yaxis.set_major_formatter("{x:g}")
        low, high = left.get_ylim()
        left.set_ylim(min(0, low), max(1, high) * 1.15)  # room for the legend
        left.legend(loc="best", fontsize=8.5)
    return figure


def eta(etas: np.ndarray, curves: Sequence[Any], note: str) -> Any:
    """One panel for each quantity, against eta.

    Args:
      etas: ascending, (E,).
      curves: `experiments.studies.ablations.eta.Curve`s.
      note: one line below.

    Returns:
      A matplotlib figure.
    """
    with styled():
        figure, axes = _figure(len(curves), note)
        for axis, colour, curve in zip(axes, COLOURS, curves, strict=False):
            _with_dots(axis, etas, curve.values, colour)
            heading(axis, curve.title, "")
            axis.set_xscale("symlog", linthresh=ZERO_TO, linscale=0.6)
            axis.set_xticks(etas, [f"{value:g}" for value in etas])
            axis.minorticks_off()
            axis.set_xlabel("weight of the Q term, $\\eta$")
            axis.set_ylabel(curve.label)
    return figure


def agents(entries: Mapping[str, Sequence[Any]], note: str) -> Any:
    """Score against the time of an update, a panel for each task.

    Args:
      entries: by task, the `Entry`s of agents.py beside it; the same agents each.
      note: one line below.

    Returns:
      A matplotlib figure.
    """
    with styled():
        figure, axes = _figure(len(entries), note)
        for axis, (task, line) in zip(
            np.atleast_1d(axes), entries.items(), strict=True
        ):
            for i, entry in enumerate(line):
                colour = COLOURS[i % len(COLOURS)]
                marker = MARKERS[i // len(COLOURS) % len(MARKERS)]
                times = [entry.update] * len(entry.scores)
                axis.plot(times, entry.scores, marker, color=colour, ms=4, alpha=0.6)
                mean = float(np.mean(entry.scores))
                look = {"color": colour, "ms": 9, "mew": 1.6, "mfc": "none"}
                axis.plot(entry.update, mean, marker, label=entry.agent, **look)
            title, _, subtitle = task.partition(", ")
            heading(axis, title, subtitle)
            axis.set_xscale("log")
            axis.set_xlabel("milliseconds per update")
            axis.set_ylabel("normalised score")
        figure.legend(
            *np.atleast_1d(axes)[0].get_legend_handles_labels(),
            loc="outside right upper",
            fontsize=8.5,
        )
    return figure


def _figure(panels: int, note: str) -> tuple[Any, Any]:
    """A row of panels with a line of text below them."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=(3.7 * panels + 0.2, 3.5),
        layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09),
    )
    figure.supxlabel(note, x=0.01, ha="left", fontsize=7.5, color=SOFT)
    return figure, figure.subplots(1, panels)


def _with_dots(
    axis: Any, x: np.ndarray, values: np.ndarray, colour: str, label: str | None = None
) -> None:
    """The mean of `values` (X, seeds) as a line, and every seed as a dot."""
    axis.plot(x, values.mean(axis=1), color=colour, lw=2, label=label)
    for seed in values.T:
        axis.plot(x, seed, "o", color=colour, ms=4, alpha=0.6, mew=0)
