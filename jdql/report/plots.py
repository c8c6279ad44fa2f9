"""Figures of a report: learning curves and performance profiles, as PNG and PDF."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdql.report.statistics import Estimate

# Paul Tol's bright scheme: told apart by colour-blind readers; dashes after that.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#AA3377", "#CCBB44", "#66CCEE")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
_INK, _SOFT, _GRID = "#222222", "#666666", "#E6E6E6"

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}


class Line(NamedTuple):
    """One method in a panel.

    Attributes:
      label: its name in the legend.
      seeds: per seed (updates, values), drawn thin.
      steps: updates of the thick line, (E,).
      mean: the thick line (E,) with the interval that is shaded.
    """

    label: str
    seeds: Sequence[tuple[np.ndarray, np.ndarray]]
    steps: np.ndarray
    mean: Estimate


class Panel(NamedTuple):
    """One set of axes; `unit` is "score" or "return"."""

    title: str
    subtitle: str
    unit: str
    lines: Sequence[Line]


_Y_LABELS = {
    "score": "normalised score (0 to 100)",
    "return": "undiscounted return per episode",
}


def learning_curves(panels: Sequence[Panel]) -> Any:
    """Draws a panel each: thin lines are seeds, the thick one their mean.

    Args:
      panels: at least one.

    Returns:
      A matplotlib figure, to be given to `save`.

    Raises:
      ValueError: matplotlib is not installed.
    """
    labels = list(dict.fromkeys(line.label for p in panels for line in p.lines))
    looks = {label: _look(i) for i, label in enumerate(labels)}
    ends = [steps[-1] for p in panels for line in p.lines for steps, _ in line.seeds]
    scale, unit = _step_unit(float(max(ends)))
    with styled():
        figure, axes = _grid(len(panels))
        for axis, panel in zip(axes, panels, strict=True):
            heading(axis, panel.title, panel.subtitle)
            for line in panel.lines:
                _draw(axis, line, scale, looks[line.label])
            axis.set_xlabel(f"gradient updates{unit}")
            axis.set_ylabel(_Y_LABELS[panel.unit])
            axis.set_xlim(left=0)
            axis.margins(x=0.02)
        _legend(
            figure,
            looks,
            "thin: one seed   thick: mean over seeds   shade: 95 % bootstrap interval",
        )
    return figure


def performance_profiles(
    thresholds: np.ndarray, profiles: Mapping[str, Estimate], subtitle: str
) -> Any:
    """Draws the share of runs above each score, one line a method.

    Args:
      thresholds: scores, (P,).
      profiles: by method, shares from 0 to 1, (P,).
      subtitle: which evaluations and tasks these are.

    Returns:
      A matplotlib figure, to be given to `save`.

    Raises:
      ValueError: matplotlib is not installed.
    """
    looks = {label: _look(i) for i, label in enumerate(profiles)}
    with styled():
        figure, (axis,) = _grid(1)
        heading(axis, "Performance profile", subtitle)
        for label, profile in profiles.items():
            colour, dash = looks[label]
            axis.fill_between(
                thresholds,
                profile.low,
                profile.high,
                color=colour,
                alpha=0.18,
                linewidth=0,
                step="post",
            )
            axis.step(thresholds, profile.value, dash, color=colour, lw=2, where="post")
        axis.set_xlabel("normalised score $\\tau$ (0 to 100)")
        axis.set_ylabel("share of runs with a score above $\\tau$")
        axis.set_ylim(-0.02, 1.04)
        axis.margins(x=0)
        _legend(figure, looks, "shade: 95 % bootstrap interval")
    return figure


def save(figure: Any, stem: Path, dpi: int = 140) -> list[Path]:
    """Writes STEM.png and STEM.pdf, the same bytes for the same numbers.

    Args:
      figure: of matplotlib.
      stem: the path without its ending.
      dpi: pixels of the PNG to an inch.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(".png"), stem.with_suffix(".pdf")]
    with styled():
        figure.savefig(paths[0], dpi=dpi, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"CreationDate": None, "Producer": None})
    return paths


def styled() -> Any:
    """The look of every figure, as a context to draw in."""
    return _matplotlib().rc_context(_STYLE)


def _matplotlib() -> Any:
    """The package, imported when something is drawn: it takes a second."""
    try:
        import matplotlib
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise ValueError(
            "matplotlib is not installed: run pip install 'jdql[plot]', or give "
            "--noplots for the tables alone"
        ) from error
    return matplotlib


def _grid(count: int) -> tuple[Any, list[Any]]:
    """A figure with `count` axes, in rows of at most four."""
    columns = count if count <= 3 else min(math.ceil(math.sqrt(count)), 4)
    rows = math.ceil(count / columns)
    size = (6.0, 4.2) if count == 1 else (4.1 * columns, 3.3 * rows + 0.5)
    figure = _matplotlib().figure.Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.09)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, list(axes[:count])


def heading(axis: Any, title: str, subtitle: str) -> None:
    """A bold title above the axes, flush left, and a soft line below it."""
    pad = 20 if subtitle else 8
    axis.set_title(title, loc="left", fontweight="bold", fontsize=10, pad=pad)
    axis.text(0, 1.035, subtitle, transform=axis.transAxes, fontsize=8, color=_SOFT)


def _draw(axis: Any, line: Line, scale: float, look: tuple[str, Any]) -> None:
    colour, dash = look
    for steps, values in line.seeds:
        marker = "." if len(steps) == 1 else None  # a single evaluation is no line
        axis.plot(
            steps / scale, values, dash, color=colour, lw=0.8, alpha=0.45, marker=marker
        )
    x = line.steps / scale
    if len(line.seeds) > 1:
        axis.fill_between(
            x, line.mean.low, line.mean.high, color=colour, alpha=0.18, linewidth=0
        )
    marker = "o" if len(x) == 1 else None
    axis.plot(x, line.mean.value, dash, color=colour, lw=2.2, marker=marker)


def _look(number: int) -> tuple[str, Any]:
    """Colour and dash of the method with this number; dashes change after colours."""
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return COLOURS[number % len(COLOURS)], dash


def _step_unit(largest: float) -> tuple[float, str]:
    """What to divide updates by, and how the axis says so."""
    if largest >= 1e6:
        return 1e6, " (millions)"
    if largest >= 2e3:
        return 1e3, " (thousands)"
    return 1.0, ""


def _legend(figure: Any, looks: Mapping[str, tuple[str, Any]], note: str) -> None:
    """Methods below the panels, and what the strokes mean in the legend's title."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linestyle=dash, lw=2.2, label=label)
        for label, (colour, dash) in looks.items()
    ]
    legend = figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=min(len(handles), 3),
        title=note,
        title_fontsize=7.5,
        fontsize=8.5,
        handlelength=1.8,
        alignment="left",
    )
    legend.get_title().set_color(_SOFT)
