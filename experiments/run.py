"""Trains, evaluates and saves the policies of a config, or goes on with a run.

    python -m experiments.run --config=walker2d_medium
    python -m experiments.run --config=walker2d_medium:quick
    python -m experiments.run --config=walker2d_medium --config.agent.eta=0.5
    python -m experiments.run --config=bandit --config.agent=diffusion_bc
    python -m experiments.run --config=runs/walker2d_medium --config.train.steps=3000000

--config.SECTION.FIELD=VALUE sets one field: of the data, train, eval and run sections
(jdql/config.py), of the agent (its file in jdql/agents), or seed and seeds.
--config.FLAG and --noconfig.FLAG turn flags on and off, none is the empty value.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import cli, run_folder
from experiments.config import config_names, resolve
from experiments.overrides import Override
from jdql.config import Config


def define(values: flags.FlagValues) -> None:
    """The program's flags."""
    flags.DEFINE_string(
        "config",
        None,
        "name, name:quick, name:smoke, path.py, or a run folder (which resumes)",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "list",
        False,
        "show every config with its dataset, environment and agent",
        flag_values=values,
    )


def program(values: flags.FlagValues, overrides: list[Override]) -> int:
    """Lists the configs, or trains one."""
    if values.list:
        print(config_table())
        return 0
    if not values.config:
        raise ValueError("give --config=NAME (--list shows the names, --help the rest)")
    config = resolve(values.config, overrides)

    from jdql.runtime import distributed

    distributed.configure(
        config.seeds, config.train.precision, config.run.compilation_cache
    )
    seeds = config.seeds or distributed.default_members()
    return launch(dataclasses.replace(config, seeds=seeds), asked=values.config)


def launch(config: Config, asked: str = "") -> int:
    """Trains a config whose number of seeds is settled, and prints the scores.

    Args:
      config: the run.
      asked: what was given as `--config`; a run folder is resumed.

    Raises:
      ValueError: the folder holds another run, or a setting is wrong.
      OSError: a file cannot be read or written.
    """
    from jdql.data import sources
    from jdql.envs import simulator
    from jdql.runtime import collect, train

    make = importlib.import_module(type(config.agent).__module__).make
    chosen, resume = run_folder.choose(config, asked)
    if config.eval.env:  # a simulator that is not there is told before data is made
        simulator.make(config.eval).close()
    source = sources.load(config.data, collect=collect.collect, log=tell)
    if resume and chosen:
        run_folder.check_data(chosen, source.id)
    make(config.agent, source.spec)  # for its errors
    # The folder comes last: a command that cannot run leaves none behind.
    folder = chosen or run_folder.claim(config.name)
    run = dataclasses.replace(config.run, dir=str(folder))
    run_folder.save(dataclasses.replace(config, run=run), folder)
    run_folder.record_start(folder)
    tell(f"run: {folder}, {config.seeds} seeds from {config.seed}")
    outcome = train.run(config, make, source, folder, resume=resume, log=tell)
    report(config, folder, outcome.step, outcome.finished)
    return 0


def tell(line: str) -> None:
    """A line for the user, at once even where the output is a file."""
    print(line, flush=True)


def report(config: Config, directory: Path, step: int, finished: bool) -> None:
    """Prints the score table and the commands that come next."""
    from jdql.envs import references
    from jdql.report import scores
    from jdql.runtime.metrics import read_rows

    rows = read_rows(directory / "evaluations.jsonl")
    if rows:
        tell(scores.format_summary(scores.summarise(rows)))
    if config.eval.reference:
        tell(references.describe(config.eval.reference))
    if finished:
        more = 2 * config.train.steps
        tell(f"train on:  {_command('run', directory)} --config.train.steps={more}")
    else:
        tell(f"stopped at update {step}; resume: {_command('run', directory)}")
    if config.eval.env:
        tell(f"evaluate:  python -m experiments.evaluate --run={directory}")


def _command(program: str, directory: Path) -> str:
    return f"python -m experiments.{program} --config={directory}"


def config_table() -> str:
    """Every config with its dataset, environment and agent, aligned."""
    rows = [("config", "dataset", "environment", "agent")]
    for name in config_names():
        config = resolve(name)
        agent = type(config.agent).__module__.rpartition(".")[2]
        rows.append((name, ", ".join(config.data.dataset), config.eval.env, agent))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(program, define, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
