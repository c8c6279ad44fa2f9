"""A run that swept settings, as one result for each combination of their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jdql.config import SWEPT
from jdql.report.scores import SELECTIONS, aligned, summarise

Row = Mapping[str, Any]


def swept(row: Row) -> dict[str, float]:
    """The swept settings in a row of a record, by dotted name; none without a sweep."""
    return {name: value for name, value in row.items() if name.startswith(SWEPT)}


def by_settings(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of `evaluations.jsonl` or `metrics.jsonl` by their swept settings.

    Returns:
      Lists by a name such as `agent.eta=0.5 agent.lr=0.0003`, in the order of the rows;
      one list by the name "" where nothing was swept.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = " ".join(f"{key}={value:g}" for key, value in swept(row).items())
        groups.setdefault(name, []).append(row)
    return groups


def format_sweep(rows: Iterable[Row]) -> str:
    """A plain text table: a line for each combination of values, over its seeds.

    Args:
      rows: the rows of a swept run's `evaluations.jsonl`.

    Returns:
      Lines without a trailing newline: mean and population standard deviation over
      seeds of the last evaluation, the mean of the last ten, and the best.

    Raises:
      ValueError: there are no rows.
    """
    groups = list(by_settings(rows).values())
    summaries = [summarise(group) for group in groups] or [summarise([])]
    columns = [n for s in SELECTIONS for n in (s.replace("_", " "), "std")]
    lines = [[*swept(groups[0][0]), *columns, ""]]
    for group, summary in zip(groups, summaries, strict=True):
        chosen = summary.selections.values()
        numbers = [f"{value:.1f}" for each in chosen for value in (each.mean, each.std)]
        lines.append([*(f"{v:g}" for v in swept(group[0]).values()), *numbers, ""])
    first = summaries[0]
    seeds = len(first.selections["last"].per_seed)
    title = (
        f"{first.unit} on {first.environment}, trained on {first.dataset}, "
        f"{seeds} seed(s) for each of {len(groups)} settings, "
        f"{first.evaluations} evaluation(s)"
    )
    note = "best: each seed's own best evaluation (optimistic: chosen in the simulator)"
    return "\n".join([title, *aligned(lines), note])
