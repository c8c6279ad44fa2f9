"""Trains, evaluates and saves the policies of a config, or goes on with a run.

    python -m experiments.run --config=walker2d_medium
    python -m experiments.run --config=walker2d_medium:quick
    python -m experiments.run --config=edp:hopper_medium
    python -m experiments.run --config=walker2d_medium --config.agent.eta=0.5
    python -m experiments.run --config=bandit --config.agent=diffusion_bc
    python -m experiments.run --config=runs/walker2d_medium --config.train.steps=3000000
    python -m experiments.run --config=hopper_medium --sweep='agent.eta=0.5,1,2'

--config takes a task, a system with its settings for the task, or both joined by ":",
and variants behind them; --list shows all, and with --config=NAME what is known of one.
--config.SECTION.FIELD=VALUE sets one field: of the data, train, eval and run sections
(jdql/config.py), of the agent (its file in jdql/agents), or seed and seeds.
--config.FLAG and --noconfig.FLAG turn flags on and off, none is the empty value.
--sweep trains every combination of the values of the agent's float settings with every
seed, all at once in one program.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.launch import cli, listing, run_folder
from experiments.launch.overrides import Override, parse_sweep
from experiments.launch.resolve import resolve
from jdql.config import Config, check_sweep
from jdql.runtime import stored


def define(values: flags.FlagValues) -> None:
    """The program's flags."""
    flags.DEFINE_string(
        "config",
        None,
        "a task, a system, or both, and variants, as edp:hopper_medium:quick; path.py; "
        "or a run folder (which resumes)",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "list",
        False,
        "show all tasks, systems and variants; with --config, what is known of those",
        flag_values=values,
    )
    flags.DEFINE_string(
        "sweep",
        None,
        "float settings of the agent and their values, 'agent.eta=0.5,1;agent.lr=3e-4'",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "distributed",
        False,
        "this is one of several processes, which SLURM, Open MPI, a TPU pod or the "
        "variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID name",
        flag_values=values,
    )


def program(values: flags.FlagValues, overrides: list[Override]) -> int:
    """Lists what there is, or trains a config."""
    if values.list:
        tell(listing.explain(values.config) if values.config else listing.overview())
        return 0
    if not values.config:
        raise ValueError("give --config=NAME (--list shows the names, --help the rest)")
    if any(override.path.partition(".")[0] == "sweep" for override in overrides):
        raise ValueError("a sweep is given as --sweep='agent.FIELD=NUMBER,NUMBER'")
    config = resolve(values.config, overrides)
    if values.sweep:
        config = dataclasses.replace(config, sweep=parse_sweep(values.sweep))
    start(config, values.config, distributed=values.distributed)
    return 0


def train(name: str, settings: Mapping[str, Any] | None = None) -> Path:
    """Trains from Python: `train("hopper_medium:quick", {"agent.eta": 0.5})`.

    Args:
      name: what `--config` takes.
      settings: by dotted name, as `--config.SECTION.FIELD=VALUE` sets them.

    Returns:
      The run folder, which `jdql.load` takes.

    Raises:
      ValueError: an unknown name or setting, or a value that does not fit.
      OSError: a file cannot be read or written.
    """
    overrides = [Override(n, _text(v)) for n, v in (settings or {}).items()]
    return start(resolve(name, overrides), name)


def _text(value: Any) -> str:
    """A value as the command line would have it."""
    listed = isinstance(value, list | tuple)
    return ",".join(map(str, value)) if listed else str(value)


def start(config: Config, asked: str = "", *, distributed: bool = False) -> Path:
    """Sets JAX up for a config and trains it.

    Args:
      config: the run; `seeds` may still be None.
      asked: what was given as `--config`.
      distributed: whether this is one of several processes.

    Returns:
      The run folder.

    Raises:
      ValueError, OSError: as `launch`.
    """
    check_sweep(config)

    from jdql.runtime import distributed as devices
    from jdql.runtime import processes

    if distributed:
        processes.connect()
    seeds = config.seeds or devices.ON_CPU
    members = seeds * math.prod(len(swept) for _, swept in config.sweep)
    devices.configure(
        0 if distributed else members,
        config.train.precision,
        config.run.compilation_cache,
    )
    seeds = config.seeds or devices.default_members()
    return launch(dataclasses.replace(config, seeds=seeds), asked)


def launch(config: Config, asked: str = "") -> Path:
    """Trains a config whose number of seeds is settled, and prints the scores.

    Args:
      config: the run.
      asked: what was given as `--config`; a run folder is resumed.

    Returns:
      The run folder.

    Raises:
      ValueError: the folder holds another run, or a setting is wrong.
      OSError: a file cannot be read or written.
    """
    from jdql.collect import collect
    from jdql.data import sources
    from jdql.envs import simulator
    from jdql.runtime import distributed, processes, train

    log = processes.first_only(tell)
    distributed.check_precision(config.train.precision)
    chosen, resume = _choose(config, asked)
    if config.eval.env:  # a simulator that is not there is told before data is made
        simulator.make(config.eval).close()
    source = processes.first_ahead(
        lambda: sources.load(config.data, collect=collect.collect, log=log)
    )
    before = chosen if resume else None
    if before:
        processes.together(lambda: run_folder.check_data(before, source.id))
    # The folder comes last: a command that cannot run leaves none behind.
    with train.planned(config, source, resume=before, log=log) as go:
        folder = Path(processes.first_does(lambda: _start(config, chosen)))
        log(f"run: {folder}, {_members_line(config)}")
        outcome = go(folder)
    if processes.is_first():
        report(config, folder, outcome.step, outcome.finished)
    return folder


def _choose(config: Config, asked: str) -> tuple[Path | None, bool]:
    """`run_folder.choose`, decided by the first process alone: it writes there soon."""
    from jdql.runtime import processes

    def choose() -> str:
        folder, resume = run_folder.choose(config, asked)
        return json.dumps([folder and str(folder), resume])

    folder, resume = json.loads(processes.first_does(choose))
    return folder and Path(folder), resume


def _start(config: Config, chosen: Path | None) -> str:
    """Writes the config and the start into the run folder; returns its name."""
    folder = chosen or run_folder.claim(config.name)
    run = dataclasses.replace(config.run, dir=str(folder))
    stored.save(dataclasses.replace(config, run=run), folder)
    run_folder.record_start(folder)
    return str(folder)


def _members_line(config: Config) -> str:
    """What is trained and where, in words."""
    import jax

    from jdql.runtime import distributed, members

    devices = distributed.member_mesh(len(members.members_of(config))).size
    line = f"{config.seeds} seeds from {config.seed}"
    if config.sweep:
        combinations = math.prod(len(values) for _, values in config.sweep)
        line += f" for each of {combinations} settings"
    idle = f" of {jax.device_count()}" if devices < jax.device_count() else ""
    return f"{line}, on {devices}{idle} device(s)"


def tell(line: str) -> None:
    """A line for the user, at once even where the output is a file."""
    print(line, flush=True)


def report(config: Config, directory: Path, step: int, finished: bool) -> None:
    """Prints the score table and the commands that come next."""
    from jdql import references
    from jdql.runtime.metrics import read_rows

    rows = read_rows(directory / "evaluations.jsonl")
    if rows:
        tell(_table(rows))
    if rows and config.eval.reference:
        tell(references.describe(config.eval.reference))
    if finished:
        more = 2 * config.train.steps
        tell(f"train on:  {_command('run', directory)} --config.train.steps={more}")
    else:
        tell(f"stopped at update {step}; resume: {_command('run', directory)}")
    if rows:
        tell(f"evaluate:  python -m experiments.evaluate --run={directory}")


def _table(rows: list[dict[str, Any]]) -> str:
    """The scores by seed, or by setting."""
    from jdql.report import scores, sweeps

    if sweeps.swept(rows[0]):
        return sweeps.format_sweep(rows)
    return scores.format_summary(scores.summarise(rows))


def _command(program: str, directory: Path) -> str:
    return f"python -m experiments.{program} --config={directory}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(program, define, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
