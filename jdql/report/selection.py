"""Which evaluation of a run is reported: the rules of model selection, side by side.

*online* looks at the simulator and takes each seed's best evaluation.  *offline* is the
rule of Diffusion-QL's authors and looks at the training loss alone: the evaluation
whose diffusion loss since the evaluation before is the (top_k + 1)-th lowest.  *last*
and *last ten* choose nothing.  Only online is optimistic; offline is not free of
choice either, because top_k was tuned for each task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jdql.report.scores import (
    CHOICES,
    SELECTIONS,
    Curve,
    Point,
    Summary,
    aligned,
    format_summary,
    gather,
    seed_curves,
    summarise,
)

LOSS = "bc_loss"  # the diffusion loss of behaviour cloning, in metrics.jsonl
_SIMPLE = {"online": "best", "last": "last", "last_ten": "last_ten"}
NAMES = ("online", "offline", "offline_as_coded", "last", "last_ten")


def offline_index(losses: ArrayLike, top_k: int) -> int:
    """Position of the (top_k + 1)-th lowest loss, the earliest among equals.

    Args:
      losses: the loss of each evaluation, (E,).
      top_k: rank from 0, below E.
    """
    return int(np.argsort(losses, kind="stable")[top_k])


def offline_index_as_coded(losses: ArrayLike, top_k: int) -> int:
    """Position that the authors' program takes: the i with `argsort(losses)[i]==top_k`.

    That is the rank of evaluation number top_k, not the evaluation of rank top_k; the
    two agree where the order of the losses is its own inverse.

    Args:
      losses: the loss of each evaluation, (E,).
      top_k: from 0, below E.
    """
    return int(np.argmax(np.argsort(losses, kind="stable") == top_k))


_OFFLINE = {"offline": offline_index, "offline_as_coded": offline_index_as_coded}


def select(
    rows: Iterable[Mapping[str, Any]],
    metrics: Iterable[Mapping[str, Any]],
    names: Sequence[str] = NAMES,
    top_k: int = 1,
) -> Summary:
    """Applies selection rules to one run; every seed chooses for itself.

    Args:
      rows: the rows of `evaluations.jsonl`.
      metrics: the rows of `metrics.jsonl`; only the offline rules read them.
      names: of `NAMES`, in the order wanted.
      top_k: rank of the offline rules, from 0.

    Returns:
      A summary whose selections are the ones named.

    Raises:
      ValueError: an unknown name, no evaluation, fewer than top_k + 1 evaluations, or
        no bc_loss since the evaluation before.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise ValueError(
            f"there is no selection {', '.join(unknown)!r}: choose all, or of "
            f"{','.join(NAMES)}"
        )
    rows, metrics = list(rows), list(metrics)
    chosen = {}
    for name in names:
        if name in _SIMPLE:
            points, meaning = _simple(rows, _SIMPLE[name])
        else:
            points, meaning = _offline(rows, metrics, name, top_k)
        chosen[name] = gather(points, meaning)
    return summarise(rows)._replace(selections=chosen)


def _simple(rows: list[Mapping[str, Any]], name: str) -> tuple[dict[int, Point], str]:
    _, curves = seed_curves(rows)
    return {s: CHOICES[name](c) for s, c in curves.items()}, SELECTIONS[name]


def _offline(
    rows: list[Mapping[str, Any]],
    metrics: list[Mapping[str, Any]],
    name: str,
    top_k: int,
) -> tuple[dict[int, Point], str]:
    _, curves = seed_curves(rows)
    points = {}
    for seed, curve in curves.items():
        if not 0 <= top_k < len(curve):
            raise ValueError(
                f"{name} with top_k={top_k} needs at least {max(top_k, 0) + 1} "
                f"evaluation(s) and a top_k of 0 or more; seed {seed} has {len(curve)} "
                "evaluation(s): give another --top_k, or --selection=online,last,"
                "last_ten"
            )
        losses = window_losses([m for m in metrics if m["seed"] == seed], curve)
        points[seed] = curve[_OFFLINE[name](losses, top_k)]
    if name == "offline":
        return points, f"the evaluation of the {_ordinal(top_k + 1)}lowest {LOSS}"
    return points, f"the authors' program, its index fault kept (top_k={top_k})"


def _ordinal(number: int) -> str:
    """What stands before "lowest": nothing for 1, then "2nd-", "3rd-", "4th-", ..."""
    if number == 1:
        return ""
    teen = number % 100 in (11, 12, 13)
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if teen else suffix}-"


def window_losses(metrics: Iterable[Mapping[str, Any]], curve: Curve) -> list[float]:
    """Mean bc_loss of one seed over the updates since the evaluation before.

    A row of metrics belongs to the evaluation at its own update or the next one after
    it; a row's mean over `train.log_every` updates is not split.

    Args:
      metrics: the rows of one seed.
      curve: its E evaluations.

    Returns:
      The E means.

    Raises:
      ValueError: there is no bc_loss for one of the evaluations.
    """
    recorded = [(m["step"], m[LOSS]) for m in metrics if m.get(LOSS) is not None]
    if not recorded:
        raise ValueError(
            f"offline selection needs {LOSS}, and this run recorded none: "
            "--selection=online,last,last_ten needs none"
        )
    means, before = [], 0
    for step, _ in curve:
        window = [loss for at, loss in recorded if before < at <= step]
        if not window:
            raise ValueError(
                f"offline selection needs {LOSS} between the updates {before} and "
                f"{step}, and none was recorded there: train with a train.log_every "
                "that divides eval.every, or give --selection=online,last,last_ten"
            )
        means.append(float(np.mean(window)))
        before = step
    return means


def format_selection(summary: Summary) -> str:
    """The table of `format_summary`, and the updates at which each seed was taken."""
    chosen = summary.selections
    seeds = list(next(iter(chosen.values())).per_seed)
    lines = [["at update", *(f"seed {seed}" for seed in seeds), ""]] + [
        [
            name.replace("_", " "),
            *(str(one.steps[seed]) for seed in seeds),
            "(the newest of those averaged)" if name == "last_ten" else "",
        ]
        for name, one in chosen.items()
    ]
    return "\n".join([format_summary(summary), "", *aligned(lines)])
