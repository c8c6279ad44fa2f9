"""Trains several configs, each as a job of its own, on SLURM or on this machine.

    python -m experiments.sweep --configs=bandit:quick,walker2d_medium:quick
    python -m experiments.sweep --configs=bandit,edp:hopper_medium --cluster=slurm

--parameters=gpus_per_node=1,slurm_partition=gpu says what SLURM is asked for.
--config.SECTION.FIELD=VALUE and --sweep go to every job, as experiments.run takes them.
A job's run folder is FOLDER/NAME.  The same command again goes on with what is there,
and a job that SLURM preempts or that runs out of time is queued again and goes on: it
loses the updates since its last checkpoint.  Queueing is submitit's work; jobs on this
machine all run at once, and the program waits for them.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import run
from experiments.launch import cli
from experiments.launch.overrides import Override, parse_sweep
from experiments.launch.resolve import resolve
from jdql.config import check_sweep

DAY = 24 * 60  # minutes


def define(values: flags.FlagValues) -> None:
    """The program's flags."""
    flags.DEFINE_list(
        "configs", [], "what experiments.run takes as --config", flag_values=values
    )
    flags.DEFINE_enum(
        "cluster", "local", ["local", "slurm"], "where to run", flag_values=values
    )
    flags.DEFINE_string(
        "folder", "runs", "where the run folders are made", flag_values=values
    )
    flags.DEFINE_integer(
        "minutes", DAY, "the longest time of a job", lower_bound=1, flag_values=values
    )
    flags.DEFINE_list(
        "parameters",
        [],
        "submitit's, as nodes=2,gpus_per_node=8,slurm_partition=gpu",
        flag_values=values,
    )
    flags.DEFINE_string("sweep", "", "as experiments.run takes it", flag_values=values)
    flags.DEFINE_bool(
        "distributed",
        False,
        "the tasks of a job are one run; with nodes=... and tasks_per_node=...",
        flag_values=values,
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """One job: a config trained in a folder, and gone on with when it is restarted."""

    config: str
    folder: str
    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Trains; raises RuntimeError where experiments.run ends with an error."""
        where = f"--config.run.dir={self.folder}"
        status = run.main([f"--config={self.config}", where, *self.arguments])
        if status:
            raise RuntimeError(f"experiments.run ended with status {status}")

    def checkpoint(self) -> Any:
        """What submitit queues when the job is preempted or runs out of time."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def program(values: flags.FlagValues, overrides: list[Override]) -> int:
    """Submits a job for each config; on this machine, waits for them."""
    jobs = make_jobs(values.configs, Path(values.folder), overrides, values.sweep)
    if values.distributed:
        jobs = [
            dataclasses.replace(j, arguments=(*j.arguments, "--distributed"))
            for j in jobs
        ]
    submitted = submit(
        jobs,
        values.cluster,
        Path(values.folder) / "submitit",
        {"timeout_min": values.minutes, **_parameters(values.parameters)},
    )
    for job, handle in zip(jobs, submitted, strict=True):
        print(f"job {handle.job_id}  {job.config}  {job.folder}", flush=True)
    return _wait(jobs, submitted) if values.cluster == "local" else 0


def make_jobs(
    configs: Sequence[str], folder: Path, overrides: Sequence[Override], sweep: str = ""
) -> list[Train]:
    """The jobs of a command, whose mistakes are told before anything is queued.

    Args:
      configs: what `--config` takes.
      folder: where the run folders are made.
      overrides: of all configs.
      sweep: what `--sweep` takes.

    Raises:
      ValueError: no configs, an unknown one, a wrong override, or two with one folder.
    """
    if not configs:
        raise ValueError("give --configs=NAME,NAME (experiments.run --list shows them)")
    if any(override.path == "run.dir" for override in overrides):
        raise ValueError("a job's folder is FOLDER/NAME: give --folder, not run.dir")
    arguments = [
        f"--config.{o.path}" + ("" if o.text is None else f"={o.text}")
        for o in overrides
    ]
    if sweep:
        arguments.append(f"--sweep={sweep}")
    jobs = []
    for name in configs:
        config = resolve(name, overrides)
        check_sweep(dataclasses.replace(config, sweep=parse_sweep(sweep)))
        where = (folder / config.name).resolve()
        jobs.append(Train(name, str(where), tuple(arguments)))
    folders = [job.folder for job in jobs]
    twice = [folder for folder in folders if folders.count(folder) > 1]
    if twice:
        raise ValueError(f"two of --configs would train in {twice[0]}")
    return jobs


def submit(
    jobs: Sequence[Train], cluster: str, logs: Path, parameters: dict[str, Any]
) -> list[Any]:
    """Hands jobs to submitit.

    Args:
      jobs: what to run.
      cluster: local or slurm.
      logs: folder of submitit's own files and of the jobs' output.
      parameters: of submitit's executor.

    Returns:
      submitit's handle of each job.

    Raises:
      ValueError: submitit is not installed, finds no SLURM, or knows no such parameter.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ValueError(
            "submitit is not installed: run pip install 'jdql[sweep]'"
        ) from error
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(name="jdql", **parameters)
        return [executor.submit(job) for job in jobs]
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"--cluster={cluster}: submitit says: {error}") from error


def _parameters(entries: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals:
            raise ValueError(f"--parameters: {entry!r} is not NAME=VALUE")
        try:
            found[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            found[name] = text
    return found


def _wait(jobs: Sequence[Train], submitted: Sequence[Any]) -> int:
    """Waits for the jobs, and says how each ended; 1 if one failed."""
    failed = 0
    for job, handle in zip(jobs, submitted, strict=True):
        error = handle.exception()
        if error is None:
            print(f"job {handle.job_id} ended  {job.folder}", flush=True)
            continue
        failed += 1
        log = handle.paths.stderr
        print(f"job {handle.job_id} failed  {job.folder}  see {log}", flush=True)
    return int(failed > 0)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(program, define, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
