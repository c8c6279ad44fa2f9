"""Runs side by side: which are seeds of one method on one task, as numbers.

A *task* is a dataset with an environment and a unit; scores and returns never share
one.  A *method* is an agent.  Its settings may differ from task to task, as the papers'
do; only where one task has several settings do these become methods of their own, named
by what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jdql.report.scores import Summary, seed_curves, summarise
from jdql.report.statistics import Floats


class Run(NamedTuple):
    """One run folder: `settings` are those that make the method, by dotted name."""

    folder: str
    agent: str
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


class Task(NamedTuple):
    """What was learnt from, where it was tested, and "score" or "return"."""

    environment: str
    dataset: str
    unit: str


class Result(NamedTuple):
    """All seeds of one method on one task.

    Attributes:
      steps: updates at which every seed was evaluated, (E,); may be none.
      values: score or return there, (N, E).
      curves: per seed all its evaluations, (steps, values).
    """

    summary: Summary
    steps: np.ndarray
    values: Floats
    curves: list[tuple[np.ndarray, np.ndarray]]


Results = dict[tuple[str, Task], Result]  # by method and task, in order


def group(runs: Sequence[Run]) -> Results:
    """Puts the seeds of each method on each task together.

    Raises:
      ValueError: there is no run, or a seed of a method occurs twice on a task.
    """
    if not runs:
        raise ValueError("nothing to compare: there is no run with an evaluation")
    tasks = [_task(run) for run in runs]
    varied = _varied(runs, tasks)
    members: dict[tuple[str, Task], list[Run]] = {}
    for run, task in zip(runs, tasks, strict=True):
        members.setdefault((_method(run, varied), task), []).append(run)
    _check_seeds(members)
    return {key: _result(group) for key, group in members.items()}


def methods(results: Results) -> list[str]:
    """The methods, in the order of their first run."""
    return list(dict.fromkeys(method for method, _ in results))


def tasks(results: Results) -> list[Task]:
    """The tasks, in the order of their first run."""
    return list(dict.fromkeys(task for _, task in results))


def _task(run: Run) -> Task:
    summary = summarise(run.rows)
    return Task(summary.environment, summary.dataset, summary.unit)


def _varied(runs: Sequence[Run], tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Per agent the settings that have several values within one task."""
    groups: dict[tuple[str, Task], list[Run]] = {}
    for run, task in zip(runs, tasks, strict=True):
        groups.setdefault((run.agent, task), []).append(run)
    found: dict[str, list[str]] = {}
    for (agent, _), members in groups.items():
        names = found.setdefault(agent, [])
        for name in dict.fromkeys(n for run in members for n in run.settings):
            values = {repr(run.settings.get(name)) for run in members}
            if len(values) > 1 and name not in names:
                names.append(name)
    return found


def _method(run: Run, varied: Mapping[str, Sequence[str]]) -> str:
    parts = [f"{n}={_show(run.settings.get(n))}" for n in varied[run.agent]]
    return " ".join([run.agent, *parts])


def _show(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_seeds(members: Mapping[tuple[str, Task], Sequence[Run]]) -> None:
    """The same seed of the same settings is the same experiment: it counts once."""
    for (method, task), runs in members.items():
        owners: dict[int, str] = {}
        for run in runs:
            for seed in sorted({row["seed"] for row in run.rows}):
                if seed in owners:
                    raise ValueError(
                        f"{owners[seed]} and {run.folder} both hold seed {seed} of "
                        f"{method} on {task.dataset}: a seed counts once, so leave "
                        "one of the folders out"
                    )
                owners[seed] = run.folder


def _result(runs: Sequence[Run]) -> Result:
    rows = [row for run in runs for row in run.rows]
    _, by_seed = seed_curves(rows)
    curves = [
        (np.array([s for s, _ in c]), np.array([v for _, v in c]))
        for c in by_seed.values()
    ]
    steps = curves[0][0]
    for other, _ in curves[1:]:
        steps = np.intersect1d(steps, other)
    values = np.stack([v[np.isin(s, steps)] for s, v in curves])
    return Result(summarise(rows), steps, values, curves)


def comparable(results: Results) -> list[list[Task]]:
    """Sets of tasks that may be aggregated: all with scores, each with returns alone.

    Returns of different tasks are counted in different units.
    """
    every = tasks(results)
    scored = [task for task in every if task.unit == "score"]
    return ([scored] if scored else []) + [[t] for t in every if t.unit == "return"]


def shared(results: Results, chosen: Sequence[Task]) -> tuple[list[Task], list[str]]:
    """The tasks of `chosen` that all methods seen on them have, and these methods."""
    present = [m for m in methods(results) if any((m, t) in results for t in chosen)]
    common = [t for t in chosen if all((m, t) in results for m in present)]
    return common, present


def table(
    results: Results, method: str, chosen: Sequence[Task], kind: str
) -> list[Floats]:
    """A method's runs as `jdql.report.statistics` takes them: (N,) per task.

    Args:
      results: from `group`.
      method: one of the methods.
      chosen: tasks that the method has.
      kind: the selection: last, last_ten or best.
    """
    summaries = [results[method, task].summary for task in chosen]
    return [np.array(list(s.selections[kind].per_seed.values())) for s in summaries]
