"""Evaluates the policies of a run in the simulator; needs the run folder alone.

    python -m experiments.evaluate --run=runs/walker2d_medium
    python -m experiments.evaluate --run=runs/walker2d_medium --step=best --episodes=100
    python -m experiments.evaluate --run=runs/walker2d_medium --seed=3
    python -m experiments.evaluate --run=runs/walker2d_medium --selection=all
    python -m experiments.evaluate --run=runs/pusht --timed \
        --config.agent.sampler=ddim --config.agent.sample_steps=5

With the number of episodes that training used, `last` gives the scores that training
printed at its end, and `best` each seed's best one.  `--selection` plays nothing: it
compares the rules of model selection on the evaluations that training recorded.

`--config.agent.FIELD=VALUE` acts with another setting than the run was trained with:
sampler, sample_steps, candidates and the others of `jdql.config.ACTING`, on which no
network depends.  Of an earlier run that this one builds on it is
`--config.given.NAME.FIELD=VALUE`.  `--timed` adds what a plan takes, one at a time.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.launch import acting, cli
from experiments.launch.overrides import Override, parse_sweep
from jdql.config import Config
from jdql.runtime import stored

Sweep = tuple[tuple[str, tuple[float, ...]], ...]


def define(values: flags.FlagValues) -> None:
    """The program's flags."""
    flags.DEFINE_string("run", None, "the run folder", flag_values=values)
    flags.DEFINE_integer(
        "seed", None, "one seed of the run; all without it", flag_values=values
    )
    flags.DEFINE_string(
        "sweep",
        "",
        "some values of swept settings, 'agent.eta=0.5,1'; all without it",
        flag_values=values,
    )
    flags.DEFINE_string(
        "step",
        "last",
        "last, best (each seed's own), or the number of a kept checkpoint",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "episodes",
        None,
        "per seed; as many as in training without it",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_list(
        "selection",
        None,
        "of the recorded evaluations: all, or some of online,offline,"
        "offline_as_coded,last,last_ten; plays nothing",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "top_k",
        None,
        "rank from 0 of offline selection; the config's own without it",
        lower_bound=0,
        flag_values=values,
    )

    flags.DEFINE_bool(
        "timed", False, "also measure what a plan takes", flag_values=values
    )


def program(values: flags.FlagValues, overrides: list[Override]) -> int:
    """Evaluates and prints a line for each seed, or compares selections."""
    acting.check(overrides)
    if not values.run:
        raise ValueError("give --run=FOLDER, a folder that experiments.run made")
    config = stored.load(values.run)
    if values["selection"].present:
        for name in ("step", "episodes", "sweep", "timed"):
            if values[name].present:
                raise ValueError(f"--selection plays nothing: drop --{name}")
        if overrides:
            raise ValueError(
                f"--selection plays nothing: drop --config.{overrides[0].path}"
            )
        top_k = config.eval.top_k if values.top_k is None else values.top_k
        print(select(Path(values.run), values.selection, top_k, values.seed))
        return 0
    if values.top_k is not None:
        raise ValueError("--top_k belongs to --selection: give both")
    if not config.eval.env:
        raise ValueError(f"the config of {values.run} names no environment")
    episodes = values.episodes or config.eval.episodes
    settings = dataclasses.replace(config.eval, episodes=episodes)

    from jdql.runtime import distributed

    members = config.seeds if values.seed is None else 1
    members = members and members * math.prod(len(swept) for _, swept in config.sweep)
    distributed.configure(members, config.train.precision, config.run.compilation_cache)
    rows = evaluate(
        dataclasses.replace(config, eval=settings),
        Path(values.run),
        step=values.step,
        seed=values.seed,
        sweep=parse_sweep(values.sweep),
        overrides=overrides,
    )
    print(format_rows(rows, values.step))
    if values.timed:
        print(timed(Path(values.run), values.step, overrides))
    return 0


def select(folder: Path, names: list[str], top_k: int, seed: int | None = None) -> str:
    """The table of model selection, from a run's files alone.

    Args:
      folder: the run folder.
      names: of `jdql.report.selection.NAMES`, or "all" alone.
      top_k: rank of the offline rules, from 0.
      seed: one seed of the run; None takes all.

    Raises:
      ValueError: no evaluation, no such seed, or a rule cannot be applied.
    """
    from jdql.report import sweeps
    from jdql.runtime.metrics import read_rows

    rows = read_rows(folder / "evaluations.jsonl")
    if not rows:
        raise ValueError(f"{folder} has no evaluation yet: there is nothing to choose")
    seeds = sorted({row["seed"] for row in rows})
    if seed is not None and seed not in seeds:
        raise ValueError(f"{folder} has no seed {seed}: its seeds are {seeds}")
    rows = [row for row in rows if seed in (None, row["seed"])]
    metrics = sweeps.by_settings(read_rows(folder / "metrics.jsonl"))
    tables = []
    for name, group in sweeps.by_settings(rows).items():
        table = _selection_table(group, metrics.get(name, []), names, top_k)
        tables.append(f"{name}\n{table}" if name else table)
    return "\n\n".join(tables)


def _selection_table(
    rows: list[Any], metrics: list[Any], names: list[str], top_k: int
) -> str:
    """The table of one setting's seeds."""
    from jdql.report import selection

    note = ""
    if names == ["all"]:
        names = list(selection.NAMES)
        fewest = min(Counter(row["seed"] for row in rows).values())
        if fewest <= top_k:  # a short run still has the others
            names = [name for name in names if not name.startswith("offline")]
            note = (
                f"\noffline is left out: with top_k={top_k} it needs {top_k + 1} "
                f"evaluations, and there are {fewest}"
            )
    summary = selection.select(rows, metrics, names, top_k)
    return selection.format_selection(summary) + note


def evaluate(
    config: Config,
    folder: Path,
    *,
    step: str = "last",
    seed: int | None = None,
    sweep: Sweep = (),
    overrides: Sequence[Override] = (),
) -> list[dict[str, Any]]:
    """Plays the policies of a run.

    Args:
      config: the run's config, with the evaluation that is wanted.
      folder: the run folder.
      step: "last", "best" or the number of a kept checkpoint.
      seed: one seed of the run; None plays all.
      sweep: values of swept settings; those that are not named are all played.
      overrides: settings of acting, in the place of those of the run.

    Returns:
      A row for each member, as in `evaluations.jsonl`.

    Raises:
      FileNotFoundError: the run has no checkpoint yet.
      ValueError: it does not act, or has no such seed, swept value or step, or a
        setting cannot change.
    """
    import jax

    from jdql.runtime import distributed, trained
    from jdql.runtime.evaluate import open_rollouts, scores, versions
    from jdql.runtime.metrics import evaluation_rows

    run = trained.open_run(folder, step)
    chosen = _chosen(run.members, folder, seed, sweep)
    members = [run.members[i] for i in chosen]
    policy, learned = _policy(run, step, chosen, overrides)
    mesh = distributed.member_mesh(len(members))
    learned = jax.device_put(learned, distributed.sharded(mesh))
    seeds = [member["seed"] for member in members]
    with open_rollouts(policy, seeds, run.spec, config.eval, mesh) as play:
        result = play(learned, lambda: False)
    return evaluation_rows(
        run.saved["step"],
        members,
        result,
        scores(result, config.eval),
        dataset=run.saved["dataset"],
        env=config.eval.env,
        reference=config.eval.reference,
        versions=versions(),
        best_steps=[run.saved["best_steps"][i] for i in chosen],
    )


def _policy(
    run: Any, step: str, chosen: Sequence[int], overrides: Sequence[Override]
) -> tuple[Any, Any]:
    """What acts, with the settings asked for, and what its members have learned."""
    from jdql.runtime import acting_settings, recipe, trained

    if recipe.outline(run.recipe).acting is None:
        raise ValueError(f"{run.folder} has no policy: its system does not act")
    settings = acting.settings(run.recipe, overrides)
    for name in settings:
        if f"agent.{name}" in run.members[0]:
            raise ValueError(f"agent.{name} was swept: choose with --sweep instead")
    learned = trained.restore(run, step, chosen)
    if not settings:
        return recipe.acting(run.recipe), learned
    made, learned = acting_settings.change(run.recipe, learned, settings)
    return recipe.acting(made), learned


def timed(folder: Path, step: str, overrides: Sequence[Override]) -> str:
    """A line about what a plan of the first member takes, one state at a time."""
    from experiments.benchmarks.planning import time_plans
    from jdql.runtime import trained

    run = trained.open_run(folder, step)
    taken = time_plans({"": _policy(run, step, [0], overrides)}, run.spec, 1)[""]
    return (
        f"a plan of {taken.actions} action(s) takes {taken.median_ms:.3g} ms (median; "
        f"99th percentile {taken.p99_ms:.3g}): {taken.decisions_per_s:,.0f} actions a "
        "second"
    )


def _chosen(
    rows: list[dict[str, Any]], folder: Path, seed: int | None, sweep: Sweep
) -> list[int]:
    """The positions of the members of a seed and of some values of swept settings."""
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    if seed is not None and seed not in seeds:
        raise ValueError(f"{folder} has no seed {seed}: its seeds are {seeds}")
    wanted = dict(sweep)
    for name, values in wanted.items():
        trained = list(dict.fromkeys(row.get(name) for row in rows))
        missing = [value for value in values if value not in trained]
        if trained == [None]:
            raise ValueError(f"{folder} did not sweep {name}")
        if missing:
            raise ValueError(f"{folder} has no {name}={missing[0]:g}: it has {trained}")
    return [
        i
        for i, row in enumerate(rows)
        if seed in (None, row["seed"])
        and all(row[name] in values for name, values in wanted.items())
    ]


def format_rows(rows: list[dict[str, Any]], step: str) -> str:
    """A line for each seed and one for their mean, and what was measured."""
    from jdql.references import describe
    from jdql.report.sweeps import by_settings, swept

    first = rows[0]
    episodes = len(first["returns"])
    lines = [
        f"{first['env']}, trained on {first['dataset']}, {episodes} episode(s) a seed"
    ]
    scored = first["score_mean"] is not None
    for row, best in zip(rows, first["best_steps"], strict=True):
        at = best if step == "best" else row["step"]
        values = "".join(f"  {name} {value:g}" for name, value in swept(row).items())
        score = f"score {row['score_mean']:8.3f}{_error(row)}  " if scored else ""
        lines.append(
            f"seed {row['seed']:3d}{values}  update {at:8d}  {score}"
            f"return {row['return_mean']:10.3f}  length {row['length_mean']:7.1f}"
            f"{_other(row)}"
        )
    unit = "score" if scored else "return"
    for name, group in by_settings(rows).items():
        mean = sum(row[f"{unit}_mean"] for row in group) / len(group)
        what = f"{len(group)} seed(s)" + (f" with {name}" if name else "")
        lines.append(f"mean {unit} over {what}: {mean:.3f}")
    if step == "best":
        lines.append("best was chosen in the simulator: it is optimistic")
    if scored:
        lines.append(describe(first["reference"]))
        if episodes > 1:
            lines.append("+- is the standard error of a mean over episodes")
    return "\n".join(lines)


def _error(row: dict[str, Any]) -> str:
    """The standard error of a seed's mean score over its episodes."""
    from jdql.report.statistics import standard_error

    scores = row["scores"]
    if len(scores) < 2:
        return ""
    return f" +- {standard_error(scores):.3f}"


def _other(row: dict[str, Any]) -> str:
    """The share of successes, where the environment reports any."""
    share = row["success_mean"]
    return "" if share is None else f"  success {100 * share:5.1f} %"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(program, define, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
