"""What a run achieved: the last, the mean of the last ten, and the best evaluation.

The three answer different questions and are always reported side by side.  *last* and
*last ten* are what training gives when nobody looks at the simulator; *best* picks, for
each seed, the evaluation that happened to score highest.  That choice needs the
simulator, and the maximum of noisy estimates lies above the truth: it is optimistic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

WINDOW = 10  # evaluations in the running mean, as in the field's tables

SELECTIONS = {
    "last": "the last evaluation",
    "last_ten": f"mean of the last {WINDOW} evaluations",
    "best": "each seed's own best evaluation (optimistic: chosen in the simulator)",
}


Point = tuple[int, float]  # updates done, score or return
Curve = list[Point]  # of one seed


class Selection(NamedTuple):
    """One way of choosing among evaluations: a value per seed, and over the seeds.

    `std` is the population standard deviation over seeds (0 for one seed).  `steps` is
    the update count of the chosen evaluation, per seed; for `last_ten`, of the newest.
    `meaning` says in words what was chosen.
    """

    mean: float
    std: float
    per_seed: dict[int, float]
    steps: dict[int, int]
    meaning: str


class Summary(NamedTuple):
    """A run's result: `unit` says what is counted, "score" (0 to 100) or "return"."""

    unit: str
    dataset: str
    environment: str
    evaluations: int
    selections: dict[str, Selection]


def summarise(rows: Iterable[Mapping[str, Any]]) -> Summary:
    """Summarises the rows of one run's `evaluations.jsonl`.

    Scores are summarised where every row has one, returns otherwise.

    Args:
      rows: mappings with `step`, `seed`, `return_mean`, `score_mean` (or None),
        `dataset` and `env`, in any order; see `jdql.runtime.metrics.evaluation_rows`.

    Returns:
      For each of `last`, `last_ten` (mean of the last ten evaluations, or of all if
      there are fewer) and `best`: mean and std over seeds, and the value per seed.

    Raises:
      ValueError: there are no rows.
    """
    table = _sorted(rows)
    unit, curves = seed_curves(table)
    return Summary(
        unit=unit,
        dataset=_names(table, "dataset"),
        environment=_names(table, "env"),
        evaluations=max(len(curve) for curve in curves.values()),
        selections={
            name: gather({s: choose(c) for s, c in curves.items()}, SELECTIONS[name])
            for name, choose in CHOICES.items()
        },
    )


def seed_curves(rows: Iterable[Mapping[str, Any]]) -> tuple[str, dict[int, Curve]]:
    """The evaluations of each seed, in the order of their updates.

    Returns:
      The unit, "score" where every row has one and "return" otherwise; and per seed the
      pairs of update count and value in that unit.

    Raises:
      ValueError: there are no rows, a return is not finite, or a seed has several rows
        at one update, as in a sweep.
    """
    table = _sorted(rows)
    if len({(row["seed"], row["step"]) for row in table}) < len(table):
        raise ValueError(
            "a seed has several evaluations at one update: the rows of a sweep are "
            "summarised for each of its settings (jdql.report.sweeps)"
        )
    scored = all(row.get("score_mean") is not None for row in table)
    column = "score_mean" if scored else "return_mean"
    curves: dict[int, Curve] = {}
    for row in table:
        if row[column] is None:
            raise ValueError(
                f"the {column} of seed {row['seed']} at update {row['step']} was not a "
                "finite number"
            )
        curves.setdefault(row["seed"], []).append((row["step"], row[column]))
    return "score" if scored else "return", curves


def gather(chosen: Mapping[int, Point], meaning: str) -> Selection:
    """Puts the pair of update count and value that each seed chose together."""
    values = np.array([value for _, value in chosen.values()])
    return Selection(
        mean=float(values.mean()),
        std=float(values.std()),
        per_seed={seed: value for seed, (_, value) in chosen.items()},
        steps={seed: step for seed, (step, _) in chosen.items()},
        meaning=meaning,
    )


def _sorted(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    table = sorted(rows, key=lambda row: (row["seed"], row["step"]))
    if not table:
        raise ValueError("nothing to summarise: the run has no evaluation yet")
    return table


def _names(rows: list[Mapping[str, Any]], field: str) -> str:
    """Every value of the field: a run whose data changed shows both names."""
    return " + ".join(sorted({str(row[field]) for row in rows}))


def _last(curve: Curve) -> Point:
    return curve[-1]


def _last_ten(curve: Curve) -> Point:
    values = [value for _, value in curve[-WINDOW:]]
    return curve[-1][0], float(np.mean(values))


def _best(curve: Curve) -> Point:
    return max(curve, key=lambda point: point[1])  # the earliest among equals


CHOICES = {"last": _last, "last_ten": _last_ten, "best": _best}


def format_summary(summary: Summary) -> str:
    """A plain text table that says which number is which.

    Returns:
      Lines without a trailing newline: what was measured, then one line per selection
      with mean and std over seeds, each seed's value, and what the selection means.
    """
    chosen = summary.selections
    seeds = list(next(iter(chosen.values())).per_seed)
    names = [f"seed {seed}" for seed in seeds]
    lines = [["selection", "mean", "std", *names, "what it is"]] + [
        [
            name.replace("_", " "),
            f"{one.mean:.1f}",
            f"{one.std:.1f}",
            *(f"{one.per_seed[seed]:.1f}" for seed in seeds),
            one.meaning,
        ]
        for name, one in chosen.items()
    ]
    title = (
        f"{summary.unit} on {summary.environment}, trained on {summary.dataset}, "
        f"{len(seeds)} seed(s), {summary.evaluations} evaluation(s)"
    )
    return "\n".join([title, *aligned(lines)])


def aligned(lines: list[list[str]]) -> list[str]:
    """Rows of cells as lines: the first and the last column left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [c.rjust(w) for c, w in zip(line[1:-1], widths[1:-1], strict=True)]
            + [line[-1]]
        ).rstrip()
        for line in lines
    ]
