r"""Losses of a run's policies on data that they were not trained on.

    python -m experiments.validate --run=runs/a --data=heldout.npz
    python -m experiments.validate --run=runs/a --episodes=14:
    python -m experiments.validate --run=runs/a,runs/b --episodes=14: --choose

Every loss is the one that training reports (`bc_loss`, `critic_loss`, ...), at the
checkpoint's parameters, a mean over the same batches and the same noise for every
policy; the run's own data stand beside it.  --episodes takes the validation data from
the run's own files: those that data.episodes left out.  The rows go to validation.jsonl
in the run folder.

--choose chooses eta without a simulator, by the one-standard-error rule (Breiman et al.
1984, section 3.4.3): the largest one whose validation cloning loss, a mean over seeds,
is at most one standard error above the lowest.  Runs of cloning alone count as eta = 0;
a run may sweep agent.eta.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.launch import cli
from experiments.launch.overrides import Override
from jdql.config import Config, DataConfig
from jdql.runtime import stored

Row = dict[str, Any]
FILE = "validation.jsonl"
KEY = 0x76616C  # of the batches and the noise: the same for every policy
LOSS = "bc_loss"


def define(values: flags.FlagValues) -> None:
    """The program's flags."""
    flags.DEFINE_list("run", None, "run folders, comma-separated", flag_values=values)
    flags.DEFINE_string(
        "data",
        None,
        "data to validate on; the run's own without it",
        flag_values=values,
    )
    flags.DEFINE_string(
        "episodes", "", "of that data, FIRST:LAST; all without it", flag_values=values
    )
    flags.DEFINE_integer(
        "step", None, "a kept checkpoint; the latest without it", flag_values=values
    )
    flags.DEFINE_integer(
        "batches", 100, "batches of each mean", lower_bound=2, flag_values=values
    )
    flags.DEFINE_bool("choose", False, "chooses eta, see above", flag_values=values)


def program(values: flags.FlagValues, overrides: list[Override]) -> int:
    """Validates the runs, prints a table and, with --choose, the choice."""
    if overrides:
        raise ValueError(f"a run keeps its settings: drop --config.{overrides[0].path}")
    if not values.run:
        raise ValueError("give --run=FOLDER, a folder that experiments.run made")
    if not (values.data or values.episodes):
        raise ValueError("give --data=FILE or --episodes=FIRST:LAST to validate on")
    configs = [stored.load(folder) for folder in values.run]

    from jdql.runtime import distributed

    first = configs[0]
    distributed.configure(1, first.train.precision, first.run.compilation_cache)
    rows: list[Row] = []
    for folder, config in zip(map(Path, values.run), configs, strict=True):
        data = validation_data(config.data, values.data, values.episodes)
        rows += validate(config, folder, data, step=values.step, batches=values.batches)
    print(format_rows(rows))
    if values.choose:
        print(format_choice(rows))
    return 0


def validation_data(own: DataConfig, data: str | None, episodes: str) -> DataConfig:
    """What to validate on, read as the run read its own data.

    Raises:
      ValueError: it is what the run was trained on.
    """
    dataset = tuple(data.split(",")) if data else own.dataset
    held_out = dataclasses.replace(own, dataset=dataset, episodes=episodes)
    if held_out == own:
        raise ValueError(
            f"the run was trained on {','.join(dataset)} {episodes}: train with "
            "--config.data.episodes to leave episodes out, or give --data"
        )
    return held_out


def validate(
    config: Config,
    folder: Path,
    data: DataConfig,
    *,
    step: int | None = None,
    batches: int = 100,
) -> list[Row]:
    """The losses of every member of a run on its own data and on `data`.

    Args:
      config: the run's config.
      folder: the run folder.
      data: what to validate on; its observations are scaled as the run's were.
      step: a kept checkpoint; the latest by default.
      batches: number of batches M of each mean.

    Returns:
      A row for each member: `step`, `seed`, what was swept, `eta` (0 for an agent
      without one), `data`, `train` and `validation` (means over M batches by name),
      and `error` (the standard errors of `validation`).

    Raises:
      FileNotFoundError: the run has no checkpoint, or there are no such data.
      ValueError: the data do not fit the run.
    """
    import jax
    import numpy as np

    from jdql.data import sources
    from jdql.runtime import recipe, trained

    run = trained.open_run(folder, "last" if step is None else step)
    own = sources.load(config.data, log=_silent)
    unscaled = dataclasses.replace(
        data,
        scale_observations="identity",
        scale_actions="identity",
        ignore=(),
        held_out=0,
    )
    held_out = sources.apply_scaling(
        sources.load(unscaled, log=_silent), own.scaling, own.agent_spec
    )
    if held_out.spec != own.spec:
        raise ValueError(
            f"{held_out.id} and {own.id}, which {folder} was trained on, differ in "
            "their sizes or action bounds"
        )
    state, learned = trained.states(run, step), trained.restore(run)
    prepare, losses = recipe.outline(run.recipe).prepare, make_losses(run, batches)
    both = [prepare(source.dataset) for source in (own, held_out)]
    rows = []
    for i, member in enumerate(run.members):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], (state, learned))
        train, validation = (
            jax.tree.map(np.asarray, losses(*one, prepared)) for prepared in both
        )
        rows.append(
            {
                "step": run.saved["step"],
                **member,
                "eta": member.get("agent.eta", vars(config.agent).get("eta", 0.0)),
                "run": str(folder),
                "data": held_out.id,
                "train": {n: float(v.mean()) for n, v in train.items()},
                "validation": {n: float(v.mean()) for n, v in validation.items()},
                "error": {
                    n: float(v.std(ddof=1) / math.sqrt(batches))
                    for n, v in validation.items()
                },
            }
        )
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def make_losses(run: Any, batches: int) -> Any:
    """A compiled `(state, learned, data) -> metrics`, each `[batches]`.

    They are what an update reports, and every update starts from the same state: the
    new state is thrown away.

    Args:
      run: of `jdql.runtime.trained`.
      batches: how many updates are tried.
    """
    import jax
    import jax.numpy as jnp

    from jdql.runtime import recipe

    def losses(state: Any, learned: Any, data: Any) -> Any:
        agent = recipe.of_learned(run.recipe, learned)

        def of_batch(number: Any) -> Any:
            key = jax.random.fold_in(jax.random.key(KEY), number)
            batch_key, draw_key = jax.random.split(key)
            batch = agent.sample_batch(batch_key, data)
            return agent.update_step(state, batch, agent.draw(draw_key))[1]

        return jax.lax.map(of_batch, jnp.arange(batches))

    return jax.jit(losses)


def choose_eta(rows: Sequence[Row]) -> tuple[float, dict[float, tuple[float, float]]]:
    """The largest eta whose validation cloning loss is as good as the lowest.

    Args:
      rows: from `validate`.

    Returns:
      The choice, and by eta, ascending, the mean loss over seeds and its standard error
      (of the batches; the seeds are the same for every eta).

    Raises:
      ValueError: there is one eta only, or a row has no cloning loss.
    """
    found: dict[float, list[tuple[float, float]]] = {}
    for row in rows:
        if LOSS not in row["validation"]:
            raise ValueError(f"{row['run']} reports no {LOSS}: eta cannot be chosen")
        pair = row["validation"][LOSS], row["error"][LOSS]
        found.setdefault(float(row["eta"]), []).append(pair)
    if len(found) == 1:
        only = next(iter(found))
        raise ValueError(
            f"there is nothing to choose from: all rows have eta = {only:g}"
        )
    losses = {}
    for eta, pairs in sorted(found.items()):
        means, errors = zip(*pairs, strict=True)
        error = math.sqrt(sum(e**2 for e in errors)) / len(pairs)
        losses[eta] = sum(means) / len(pairs), error
    limit = sum(min(losses.values()))  # the lowest loss and its standard error
    return max(eta for eta, (loss, _) in losses.items() if loss <= limit), losses


def format_rows(rows: Sequence[Row]) -> str:
    """A line for each policy; for every loss the validation's, then the training's."""
    lines = [f"validation on {', '.join(dict.fromkeys(row['data'] for row in rows))}"]
    for row in rows:
        losses = "  ".join(
            f"{name} {value:.4g} +- {row['error'][name]:.1g} ({row['train'][name]:.4g})"
            for name, value in row["validation"].items()
            if "norm" not in name
        )
        lines.append(
            f"{row['run']} seed {row['seed']} eta {row['eta']:g} "
            f"update {row['step']}:  {losses}"
        )
    return "\n".join(lines)


def format_choice(rows: Sequence[Row]) -> str:
    """The choice in words, with what it was made from."""
    chosen, losses = choose_eta(rows)
    table = ", ".join(f"{eta:g}: {m:.5f} +- {e:.5f}" for eta, (m, e) in losses.items())
    return (
        f"validation cloning loss by eta: {table}\n"
        f"chosen: eta = {chosen:g}, the largest within a standard error of the lowest"
    )


def _silent(line: str) -> None:
    """Takes the lines of a log that nobody reads."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(program, define, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
