"""The interplay of the two losses: what the weight eta of the Q term does.

All values are trained in one process, as members of one run: the same seeds, batches
and noise for every eta.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.launch.overrides import Override
from experiments.launch.resolve import resolve
from experiments.studies.ablations import plots, runs
from jdql.agents import diffusion_ql
from jdql.config import SWEPT, Config
from jdql.report.plots import save

ETAS = (0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0)
UPDATES = 10_000
NAME = f"{SWEPT}eta"
PREFERRED, OTHERWISE = "safety_halfcheetah", "walker2d_medium"


class Curve(NamedTuple):
    """One quantity at every eta: its axis has `label`, and `values` is [eta, seed]."""

    title: str
    label: str
    values: np.ndarray


def default_task(log: runs.Log) -> str:
    """safety_halfcheetah where its recording is, else walker2d_medium."""
    if runs.available(PREFERRED, log):
        return PREFERRED
    log(f"{OTHERWISE} takes its place")
    return OTHERWISE


def config_of(
    task: str,
    seeds: Sequence[int],
    folder: Path,
    *,
    full: bool,
    overrides: Sequence[Override] = (),
) -> Config:
    """The one run that has every eta.

    Raises:
      ValueError: there is no such task, or its agent is not Diffusion-QL.
    """
    config = resolve(task)
    if not isinstance(config.agent, diffusion_ql.Config):
        raise ValueError(f"--config={task}: the figure is about Diffusion-QL's eta")
    config = dataclasses.replace(config, sweep=((NAME, ETAS),))
    config = runs.sized(config, None if full else UPDATES, seeds, overrides)
    named = dataclasses.replace(config, name=f"{config.name}-eta")
    return runs.placed(named, folder)


def run(config: Config, out: Path, *, log: runs.Log) -> list[Path] | None:
    """Trains the run if need be, prints the table and draws the figure.

    Returns:
      The files that were written; None where the user stopped the training.

    Raises:
      ValueError, OSError: as `experiments.run`.
    """
    if not runs.trained(config, log):
        return None
    etas, curves = read(Path(config.run.dir))
    log("\n" + table(etas, curves))
    rows = runs.final_rows(Path(config.run.dir))
    note = (
        f"{rows[0]['dataset']}, {rows[0]['env']}, {rows[0]['step']:,} updates, "
        f"{curves[0].values.shape[1]} seed(s): dots; the line is their mean. Losses "
        "and Q are means over the last tenth of the updates."
    )
    return save(plots.eta(etas, curves, note), out / "eta")


def read(folder: Path) -> tuple[np.ndarray, list[Curve]]:
    """The values of eta, ascending, and the three quantities at each.

    Raises:
      ValueError: the run has swept something else.
    """
    finals, unit = runs.final_metrics(folder, ("bc_loss", "q_mean")), "return"
    rows = runs.final_rows(folder)
    if NAME not in rows[0]:
        raise ValueError(f"{folder} has swept no {NAME}")
    if rows[0]["score_mean"] is not None:
        unit = "normalised score"
    scores = [{**row, "score": runs.final_score(row)} for row in rows]
    etas = sorted({row[NAME] for row in rows})

    def curve(title: str, label: str, members: Sequence[dict], name: str) -> Curve:
        values = [[m[name] for m in members if m[NAME] == eta] for eta in etas]
        return Curve(title, label, np.array(values))

    return np.array(etas), [
        curve("Cloning loss", "squared error of the noise", finals, "bc_loss"),
        curve("Q of the data", "mean Q, in discounted reward", finals, "q_mean"),
        curve("Score", unit, scores, "score"),
    ]


def table(etas: np.ndarray, curves: Sequence[Curve]) -> str:
    """Means over seeds, one line for each eta."""
    lines = [f"{'eta':>6}" + "".join(f"{c.title:>16}" for c in curves)]
    for i, eta in enumerate(etas):
        cells = (f"{curve.values[i].mean():16.4g}" for curve in curves)
        lines.append(f"{eta:6g}" + "".join(cells))
    return "\n".join(lines)
