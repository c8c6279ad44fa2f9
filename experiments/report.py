"""Compares runs: tables with intervals, learning curves, performance profiles.

    python -m experiments.report runs/walker2d_medium
    python -m experiments.report runs/a runs/b --out=report/
    python -m experiments.report 'runs/hopper*' runs/walker2d_medium --by=agent

Takes run folders, patterns, and folders of run folders, and reads their files alone.
Seeds of the same agent on the same data and environment are put together, whichever
run they are from.  Writes report.txt, learning_curves.{png,pdf} and, where there are
scores of several runs, profiles.{png,pdf}.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.launch import cli
from experiments.launch.overrides import Override
from jdql import references
from jdql.config import SWEPT
from jdql.report import comparison, plots, statistics, sweeps, tables
from jdql.report.comparison import Results, Run
from jdql.report.scores import SELECTIONS
from jdql.runtime import stored

# What of a config does not make another method: where data is from is in its id.
_NOT_SETTINGS = ("data.dataset", "data.source", "data.collect_steps")


def define(values: flags.FlagValues) -> None:
    """The program's flags."""
    flags.DEFINE_list(
        "runs", None, "run folders; also given without --runs=", flag_values=values
    )
    flags.DEFINE_string(
        "out", "report", "folder for the text and the figures", flag_values=values
    )
    flags.DEFINE_enum(
        "by",
        "task",
        ["task", "agent"],
        "a table and a panel for each task, or for each agent",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "selection",
        "last_ten",
        list(SELECTIONS),
        "which evaluations the aggregates are of: last, last_ten or best",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "repetitions",
        statistics.REPETITIONS,
        "of the bootstrap",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_bool("plots", True, "draw the figures", flag_values=values)


def program(values: flags.FlagValues, overrides: list[Override]) -> int:
    """Prints the report and writes it with its figures."""
    if overrides:
        raise ValueError(f"a report changes no run: drop --config.{overrides[0].path}")
    if not values.runs:
        raise ValueError(
            "nothing to compare: give run folders, as in "
            "python -m experiments.report runs/a runs/b"
        )
    runs, notes = read_runs(find_folders(values.runs))
    results = comparison.group(runs)
    rng = np.random.default_rng(0)  # the same runs give the same report
    text = "\n\n".join(
        [
            tables.format_tables(results, values.by),
            tables.format_aggregates(
                results, values.selection, rng, values.repetitions
            ),
            "\n".join([*about(runs), *notes]),
        ]
    ).rstrip()
    print(text)
    out = Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.txt").write_text(text + "\n", encoding="utf-8")
    written = [out / "report.txt"]
    if values.plots:
        written += draw(results, out, values.by, values.selection, values.repetitions)
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def find_folders(names: Sequence[str]) -> list[Path]:
    """The run folders that names, patterns and folders of runs stand for, each once.

    Raises:
      ValueError: a name stands for no run.
    """
    found: dict[Path, Path] = {}
    for name in names:
        folders: list[Path] = []
        for path in sorted(Path(match) for match in glob.glob(name)):
            inside = [path] if stored.is_run(path) else sorted(path.glob("*"))
            folders += [folder for folder in inside if stored.is_run(folder)]
        if not folders:
            raise ValueError(
                f"{name} is no run folder and holds none: there is no {stored.FILE}"
            )
        found |= {folder.resolve(): folder for folder in folders}
    return list(found.values())


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Reads the runs that have an evaluation, and a note for each that has none.

    Raises:
      ValueError: none has one, or a file cannot be read.
    """
    from jdql.runtime.metrics import read_rows

    runs, notes = [], []
    for folder in folders:
        rows = read_rows(folder / "evaluations.jsonl")
        if not rows:
            notes.append(f"left out: {folder} has no evaluation yet")
            continue
        config = stored.to_dict(stored.load(folder))
        agent = config["agent_module"].rpartition(".")[2]
        for group in sweeps.by_settings(rows).values():  # of a sweep, each counts
            swept = sweeps.swept(group[0])
            values = {name.removeprefix(SWEPT): v for name, v in swept.items()}
            runs.append(Run(str(folder), agent, settings(config) | values, group))
    if not runs:
        raise ValueError(
            f"nothing to compare: no evaluation yet in {', '.join(map(str, folders))}"
        )
    return runs, notes


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that make a method: the agent's, the data's, the precision."""
    found = dict(config["agent"])
    found |= {f"data.{name}": value for name, value in config["data"].items()}
    found["train.precision"] = config["train"]["precision"]
    return {name: v for name, v in found.items() if name not in _NOT_SETTINGS}


def about(runs: Sequence[Run]) -> list[str]:
    """What the numbers are measured with, and what they must not be taken for."""
    used = dict.fromkeys(row.get("reference") for run in runs for row in run.rows)
    lines = [references.describe(name) for name in used if name]
    datasets = dict.fromkeys(row["dataset"] for run in runs for row in run.rows)
    local = [name for name in datasets if name.startswith("jdql/")]
    if local:
        lines.append(
            f"collected by jdql itself, not D4RL's or Minari's: {', '.join(local)}"
        )
    return lines


# Figures ------------------------------------------------------------------------------


def draw(
    results: Results, out: Path, by: str, selection: str, repetitions: int
) -> list[Path]:
    """Draws learning curves and, for scores of several runs, performance profiles."""
    figure = plots.learning_curves(panels(results, by, repetitions))
    written = plots.save(figure, out / "learning_curves")
    for chosen in comparison.comparable(results):
        common, present = comparison.shared(results, chosen)
        scores = {m: comparison.table(results, m, common, selection) for m in present}
        several = any(sum(map(len, runs)) > 1 for runs in scores.values())
        if common and common[0].unit == "score" and several:
            figure = _profiles(scores, selection, len(common), repetitions)
            written += plots.save(figure, out / "profiles")
    return written


def panels(results: Results, by: str, repetitions: int) -> list[plots.Panel]:
    """A panel for each task (or agent and unit), a line for each agent (or task)."""
    groups: dict[tuple[str, str, str], list[plots.Line]] = {}
    for (method, task), result in results.items():
        rng = np.random.default_rng(0)
        count = len(result.curves)
        indices = rng.integers(count, size=(repetitions, count))
        if by == "task":
            key, label = (task.environment, task.dataset, task.unit), method
        else:
            key, label = (method, "", task.unit), f"{task.environment}, {task.dataset}"
        mean = statistics.estimate_curve(result.values, indices)
        line = plots.Line(label, result.curves, result.steps, mean)
        groups.setdefault(key, []).append(line)
    return [plots.Panel(*key, lines) for key, lines in groups.items()]


def _profiles(
    scores: dict[str, list[Any]], selection: str, tasks: int, repetitions: int
) -> Any:
    pooled = np.concatenate([np.concatenate(runs) for runs in scores.values()])
    thresholds = np.linspace(min(0.0, pooled.min()), max(100.0, pooled.max()), 501)
    rng = np.random.default_rng(0)

    def profile(table: Any) -> Any:
        return statistics.performance_profile(table, thresholds)

    profiles = {
        method: statistics.estimate(
            profile, runs, statistics.draw_indices(runs, rng, repetitions)
        )
        for method, runs in scores.items()
    }
    subtitle = f"{selection.replace('_', ' ')} of {pooled.size} runs on {tasks} task(s)"
    return plots.performance_profiles(thresholds, profiles, subtitle)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(program, define, __doc__ or "", argv, rest="runs")


if __name__ == "__main__":
    sys.exit(main())
