"""The text of a report: a table per task, and aggregates with their intervals."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from jdql.report import statistics
from jdql.report.comparison import (
    Result,
    Results,
    Task,
    comparable,
    methods,
    shared,
    table,
    tasks,
)
from jdql.report.scores import SELECTIONS, WINDOW, Summary, aligned
from jdql.report.statistics import Estimate, Floats, Indices


def format_tables(results: Results, by: str = "task") -> str:
    """Last, last ten and best, mean +- std over seeds, for every method and task.

    Args:
      results: from `jdql.report.comparison.group`.
      by: "task" has one table per task with a line per method, "agent" the reverse.
    """
    blocks = []
    if by == "task":
        for task in tasks(results):
            lines = {m: r for (m, t), r in results.items() if t == task}
            blocks.append(_block(describe(task), "method", lines))
    else:
        for method in methods(results):
            lines = {describe(t): r for (m, t), r in results.items() if m == method}
            blocks.append(_block(method, "task", lines))
    notes = [f"best: {SELECTIONS['best']}"]
    if any(len(steps) < WINDOW for r in results.values() for steps, _ in r.curves):
        notes.append(
            f"last ten: of all evaluations where there are fewer than {WINDOW}"
        )
    return "\n\n".join([*blocks, "\n".join(notes)])


def describe(task: Task) -> str:
    """The task in words; the dataset is the one that was really trained on."""
    return f"{task.unit} on {task.environment}, trained on {task.dataset}"


def _block(title: str, label: str, results: Mapping[str, Result]) -> str:
    head = [label, "seeds", "updates", "evaluations", "last", "last ten", "best", ""]
    lines = [head] + [
        [
            name,
            str(len(result.curves)),
            _span([int(steps[-1]) for steps, _ in result.curves]),
            _span([len(steps) for steps, _ in result.curves]),
            *(_spread(result.summary, kind) for kind in SELECTIONS),
            "",
        ]
        for name, result in results.items()
    ]
    return "\n".join([title, *aligned(lines)])


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _spread(summary: Summary, kind: str) -> str:
    chosen = summary.selections[kind]
    alone = len(chosen.per_seed) == 1
    return f"{chosen.mean:.1f}" + ("" if alone else f" +- {chosen.std:.1f}")


# Aggregates ---------------------------------------------------------------------------

_STATISTICS = {
    "IQM": statistics.interquartile_mean,
    "median": statistics.median,
    "mean": statistics.mean,
}


def format_aggregates(
    results: Results,
    kind: str,
    rng: np.random.Generator,
    repetitions: int = statistics.REPETITIONS,
) -> str:
    """IQM, median and mean over seeds and tasks, and probabilities of improvement.

    Scores are aggregated over the tasks that every method has, returns for each task
    alone: those of different tasks do not add up.

    Args:
      results: from `jdql.report.comparison.group`.
      kind: the selection: last, last_ten or best.
      rng: the source of the bootstrap.
      repetitions: of the bootstrap.

    Returns:
      Lines without a trailing newline, values with 95 % intervals.
    """
    blocks = []
    for chosen in comparable(results):
        common, present = shared(results, chosen)
        if not common:
            blocks.append("no aggregate of scores: no task was run by every method")
            continue
        scores = {m: table(results, m, common, kind) for m in present}
        drawn = {
            m: statistics.draw_indices(runs, rng, repetitions)
            for m, runs in scores.items()
        }
        blocks.append(
            "\n".join(
                [
                    _title(common, len(chosen), kind, repetitions),
                    *_aggregates(scores, drawn, common[0].unit),
                    *_improvements(scores, drawn),
                    *_warnings(scores),
                ]
            )
        )
    return "\n\n".join(blocks)


def _title(common: Sequence[Task], available: int, kind: str, repetitions: int) -> str:
    if common[0].unit == "return":
        what = describe(common[0])
    elif len(common) < available:
        what = (
            f"score over the {len(common)} of {available} tasks that all methods have"
        )
    else:
        what = f"score over {len(common)} task(s)"
    return (
        f"{kind.replace('_', ' ')} {what}, with 95 % intervals "
        f"(stratified bootstrap, {repetitions} repetitions)"
    )


def _aggregates(
    scores: Mapping[str, list[Floats]], drawn: Mapping[str, Indices], unit: str
) -> list[str]:
    chosen = dict(_STATISTICS)
    if unit == "score":
        chosen["gap to 100"] = statistics.optimality_gap
    lines = [["method", "runs", *chosen, ""]]
    for method, runs in scores.items():
        known = any(len(task) > 1 for task in runs)
        values = [
            _interval(statistics.estimate(statistic, runs, drawn[method]), known)
            for statistic in chosen.values()
        ]
        lines.append([method, str(sum(map(len, runs))), *values, ""])
    return aligned(lines)


def _interval(value: Estimate, known: bool, digits: int = 1) -> str:
    text = f"{value.value:.{digits}f}"
    bounds = f" [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    return text + bounds if known else text


def _improvements(
    scores: Mapping[str, list[Floats]], drawn: Mapping[str, Indices]
) -> list[str]:
    lines = []
    for ours, theirs in itertools.combinations(scores, 2):
        both = scores[ours] + scores[theirs]
        value = statistics.estimate_improvement(
            scores[ours], scores[theirs], (drawn[ours], drawn[theirs])
        )
        known = any(len(task) > 1 for task in both)
        lines.append(f"P({ours} > {theirs}) = {_interval(value, known, 2)}")
    return ["probability of improvement, ties count half:", *lines] if lines else []


def _warnings(scores: Mapping[str, list[Floats]]) -> list[str]:
    counts = {len(task) for runs in scores.values() for task in runs}
    uneven = any(len({len(task) for task in runs}) > 1 for runs in scores.values())
    lines = []
    if counts == {1}:
        lines.append("one seed a task: there is nothing to resample, so no interval")
    elif 1 in counts:
        lines.append("a task has one seed only: the intervals are too narrow")
    if uneven:
        lines.append("seeds differ between tasks: the IQM counts every run once")
    return lines
