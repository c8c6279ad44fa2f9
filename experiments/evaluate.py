"""Evaluates the policies of a run in the simulator; needs the run folder alone.

    python -m experiments.evaluate --run=runs/walker2d_medium
    python -m experiments.evaluate --run=runs/walker2d_medium --step=best --episodes=100
    python -m experiments.evaluate --run=runs/walker2d_medium --seed=3
    python -m experiments.evaluate --run=runs/walker2d_medium --selection=all

With the number of episodes that training used, `last` gives the scores that training
printed at its end, and `best` each seed's best one.  `--selection` plays nothing: it
compares the rules of model selection on the evaluations that training recorded.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import cli, run_folder
from experiments.overrides import Override
from jdql.config import Config


def define(values: flags.FlagValues) -> None:
    """The program's flags."""
    flags.DEFINE_string("run", None, "the run folder", flag_values=values)
    flags.DEFINE_integer(
        "seed", None, "one seed of the run; all without it", flag_values=values
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


def program(values: flags.FlagValues, overrides: list[Override]) -> int:
    """Evaluates and prints a line for each seed, or compares selections."""
    if overrides:
        raise ValueError(f"a run keeps its settings: drop --config.{overrides[0].path}")
    if not values.run:
        raise ValueError("give --run=FOLDER, a folder that experiments.run made")
    config = run_folder.load(values.run)
    if values["selection"].present:
        for name in ("step", "episodes"):
            if values[name].present:
                raise ValueError(f"--selection plays nothing: drop --{name}")
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
    distributed.configure(members, config.train.precision, config.run.compilation_cache)
    rows = evaluate(
        dataclasses.replace(config, eval=settings),
        Path(values.run),
        step=values.step,
        seed=values.seed,
    )
    print(format_rows(rows, values.step))
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
    from jdql.report import selection
    from jdql.runtime.metrics import read_rows

    rows = read_rows(folder / "evaluations.jsonl")
    if not rows:
        raise ValueError(f"{folder} has no evaluation yet: there is nothing to choose")
    seeds = sorted({row["seed"] for row in rows})
    if seed is not None and seed not in seeds:
        raise ValueError(f"{folder} has no seed {seed}: its seeds are {seeds}")
    rows = [row for row in rows if seed in (None, row["seed"])]
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
    metrics = read_rows(folder / "metrics.jsonl")
    summary = selection.select(rows, metrics, names, top_k)
    return selection.format_selection(summary) + note


def evaluate(
    config: Config, folder: Path, *, step: str = "last", seed: int | None = None
) -> list[dict[str, Any]]:
    """Plays the policies of a run.

    Args:
      config: the run's config, with the evaluation that is wanted.
      folder: the run folder.
      step: "last", "best" or the number of a kept checkpoint.
      seed: one seed of the run; None plays all.

    Returns:
      A row for each seed, as in `evaluations.jsonl`.

    Raises:
      FileNotFoundError: the run has no checkpoint yet.
      ValueError: it has no such seed or step.
    """
    import jax

    from jdql.agents.base import scaled
    from jdql.data.normalize import blank
    from jdql.envs.references import normalized
    from jdql.runtime import checkpoint, distributed
    from jdql.runtime.evaluate import Rollouts, versions
    from jdql.runtime.metrics import evaluation_rows
    from jdql.types import DataSpec

    checkpoints = folder / "checkpoints"
    number = int(step) if step.isdigit() else None
    saved = checkpoint.metadata(checkpoints, number)
    member, seeds = None, saved["seeds"]
    if seed is not None:
        if seed not in seeds:
            raise ValueError(f"{folder} has no seed {seed}: its seeds are {seeds}")
        member, seeds = seeds.index(seed), [seed]
    stored = saved["spec"]  # JSON knows no tuples
    bounds = {name: tuple(stored[name]) for name in ("action_low", "action_high")}
    spec = DataSpec(**{**stored, **bounds})
    make = importlib.import_module(type(config.agent).__module__).make
    agent = scaled(make(config.agent, spec), blank(config.data, spec.observation_dim))
    keys = jax.random.split(jax.random.key(0), len(saved["seeds"]))
    stacked = jax.eval_shape(jax.vmap(lambda key: agent.policy(agent.init(key))), keys)
    policies = checkpoint.restore_policy(checkpoints, stacked, step, member)
    if member is not None:
        policies = jax.tree.map(lambda leaf: leaf[None], policies)
    mesh = distributed.member_mesh(len(seeds))
    policies = jax.device_put(policies, distributed.sharded(mesh))
    with Rollouts(agent, seeds, spec, config.eval, mesh=mesh) as rollouts:
        result = rollouts(policies)
    reference = config.eval.reference
    scores = normalized(result.returns, reference) if reference else None
    return evaluation_rows(
        saved["step"],
        seeds,
        result.returns,
        result.lengths,
        scores,
        dataset=saved["dataset"],
        env=config.eval.env,
        reference=reference,
        versions=versions(),
        best_steps=[saved["best_steps"][saved["seeds"].index(s)] for s in seeds],
    )


def format_rows(rows: list[dict[str, Any]], step: str) -> str:
    """A line for each seed and one for their mean, and what was measured."""
    from jdql.envs.references import describe

    first = rows[0]
    episodes = len(first["returns"])
    lines = [
        f"{first['env']}, trained on {first['dataset']}, {episodes} episode(s) a seed"
    ]
    scored = first["score_mean"] is not None
    for row, best in zip(rows, first["best_steps"], strict=True):
        at = best if step == "best" else row["step"]
        score = f"score {row['score_mean']:8.3f}  " if scored else ""
        lines.append(
            f"seed {row['seed']:3d}  update {at:8d}  {score}"
            f"return {row['return_mean']:10.3f}  length {row['length_mean']:7.1f}"
        )
    unit = "score" if scored else "return"
    mean = sum(row[f"{unit}_mean"] for row in rows) / len(rows)
    lines.append(f"mean {unit} over {len(rows)} seed(s): {mean:.3f}")
    if step == "best":
        lines.append("best was chosen in the simulator: it is optimistic")
    if scored:
        lines.append(describe(first["reference"]))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(program, define, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
