"""Draws the paper's own experiments, and trains for them what is not trained yet.

    python -m experiments.figures bandit    four ways of cloning, and of Q-learning
    python -m experiments.figures steps     score and update time against T
    python -m experiments.figures eta       what the weight of the Q term does
    python -m experiments.figures agents    all agents: score against update cost
    python -m experiments.figures plans     plans out of noise, chunks and their modes
    python -m experiments.figures returns   what comes of the return asked for

Figures go to --out as PNG and PDF. Every command can be interrupted: given again, it
goes on with what is there. The default sizes are those of two CPU cores: 15 minutes,
an hour, an hour, sixteen hours (with --config.train.steps=3000 two and a half), some
hours for each of the last two; --full is the authors' size, for a GPU.

All but bandit take --config.SECTION.FIELD=VALUE like experiments.run. plans and returns
draw runs of one's own with --trained=FOLDER,FOLDER, finished or not, as they are.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from experiments.launch import cli
from experiments.launch.overrides import Override


def define(values: flags.FlagValues) -> None:
    """The program's flags."""
    flags.DEFINE_string("out", "figures", "folder of the figures", flag_values=values)
    flags.DEFINE_string(
        "runs", "runs/figures", "all but bandit: folder of the runs", flag_values=values
    )
    flags.DEFINE_bool("full", False, "the authors' size", flag_values=values)
    flags.DEFINE_integer("seed", 0, "the first seed", flag_values=values)
    flags.DEFINE_integer(
        "seeds",
        None,
        "how many; 2 without it, 5 with --full; plans and returns 1",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "config",
        None,
        "eta: the task; safety_halfcheetah where its data is, else walker2d_medium. "
        "steps: the task beside the bandit; walker2d_medium. agents: only this task. "
        "plans: the maze; pointmaze_umaze. returns: the task; hopper_medium",
        flag_values=values,
    )
    flags.DEFINE_list("agents", [], "agents: only these", flag_values=values)
    flags.DEFINE_list(
        "only", [], "plans: only these of maze, pusht, two_route", flag_values=values
    )
    flags.DEFINE_list(
        "trained",
        [],
        "plans and returns: run folders to draw in the place of runs of their own",
        flag_values=values,
    )
    flags.DEFINE_string(
        "step",
        "last",
        "plans: of which checkpoints: last, best (at the highest score that training "
        "saw) or a number",
        flag_values=values,
    )
    flags.DEFINE_list(
        "targets",
        [],
        "returns: those asked for; without it six, over the range of the data",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "shifted",
        False,
        "bandit: draw BCQ's actions with their shift, which the authors leave out",
        flag_values=values,
    )


def bandit(values: flags.FlagValues, overrides: list[Override]) -> int:
    """The two-dimensional bandit."""
    if overrides or values.config:
        raise ValueError("bandit takes no --config: its methods are fixed")
    seeds = _seeds(values)
    _configure(len(seeds))
    from experiments.studies.bandit import experiment, panels

    budget = panels.FULL if values.full else panels.DEFAULT
    written = experiment.run(
        Path(values.out),
        Path(values.runs) / "bandit",
        seeds,
        budget,
        shifted=values.shifted,
        log=_tell,
    )
    return _report(written)


def steps(values: flags.FlagValues, overrides: list[Override]) -> int:
    """The number of diffusion steps."""
    seeds = _seeds(values)
    _configure(len(seeds))
    from experiments.studies.ablations import steps as experiment

    tasks = dict.fromkeys(("bandit", values.config or "walker2d_medium"))
    return _report(
        experiment.run(
            list(tasks),
            seeds,
            Path(values.out),
            Path(values.runs) / "steps",
            full=values.full,
            overrides=overrides,
            log=_tell,
        )
    )


def eta(values: flags.FlagValues, overrides: list[Override]) -> int:
    """The interplay of the two losses."""
    seeds = _seeds(values)
    from experiments.studies.ablations import eta as experiment

    _configure(len(experiment.ETAS) * len(seeds))
    task = values.config or experiment.default_task(_tell)
    config = experiment.config_of(
        task,
        seeds,
        Path(values.runs) / "eta",
        full=values.full,
        overrides=overrides,
    )
    return _report(experiment.run(config, Path(values.out), log=_tell))


def agents(values: flags.FlagValues, overrides: list[Override]) -> int:
    """Every agent on a few tasks."""
    seeds = _seeds(values)
    _configure(len(seeds))
    from experiments.studies.ablations import agents as experiment

    return _report(
        experiment.run(
            [values.config] if values.config else [],
            values.agents,
            seeds,
            Path(values.out),
            Path(values.runs) / "agents",
            full=values.full,
            overrides=overrides,
            log=_tell,
        )
    )


def plans(values: flags.FlagValues, overrides: list[Override]) -> int:
    """Trajectories and chunks, as they are planned."""
    seeds = _seeds(values, values.seeds or 1)
    _configure(len(seeds))
    from experiments.studies.plans import study

    return _report(
        study.run(
            values.only,
            study.by_part(values.trained),
            values.config,
            seeds,
            Path(values.out),
            Path(values.runs) / "plans",
            step=values.step,
            full=values.full,
            overrides=overrides,
            log=_tell,
        )
    )


def returns(values: flags.FlagValues, overrides: list[Override]) -> int:
    """Decision Diffuser's return against the one asked for."""
    seeds = _seeds(values, values.seeds or 1)
    targets = _numbers("targets", values.targets)
    _configure(len(seeds))
    from experiments.studies.ablations import runs
    from experiments.studies.plans import returns as experiment

    if values.trained:
        folder = Path(values.trained[0])
    else:
        config = experiment.config_of(
            values.config or "hopper_medium",
            seeds,
            Path(values.runs) / "returns",
            full=values.full,
            overrides=overrides,
        )
        if not runs.trained(config, _tell):
            return _report(None)
        folder = Path(config.run.dir)
    return _report(experiment.run(folder, targets, Path(values.out), log=_tell))


COMMANDS: dict[str, Callable[[flags.FlagValues, list[Override]], int]] = {
    "bandit": bandit,
    "steps": steps,
    "eta": eta,
    "agents": agents,
    "plans": plans,
    "returns": returns,
}


def _seeds(values: flags.FlagValues, count: int | None = None) -> range:
    count = count or values.seeds or (5 if values.full else 2)
    return range(values.seed, values.seed + count)


def _numbers(name: str, texts: Sequence[str]) -> list[float]:
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise ValueError(
            f"--{name} must be numbers such as 0.4,0.8, it is {','.join(texts)}"
        ) from None


def _configure(members: int) -> None:
    """Sets JAX up for so many members, and asks for matplotlib before training."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("matplotlib is not installed: run pip install 'jdql[plot]'")
    from jdql.config import RunConfig
    from jdql.runtime import distributed

    distributed.configure(members, cache=RunConfig().compilation_cache)


def _report(written: list[Path] | None) -> int:
    """Says what was written, or that the user has stopped the training."""
    if written is None:
        _tell("stopped: the same command goes on")
        return 130
    _tell("\n" + "\n".join(f"wrote {path}" for path in written))
    return 0


def _tell(line: str) -> None:
    """A line for the user, at once even where the output is a file."""
    print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments and arguments[0] in COMMANDS else None

    def program(values: flags.FlagValues, overrides: list[Override]) -> int:
        if name is None:
            raise ValueError(
                f"say what to draw: python -m experiments.figures "
                f"{'|'.join(COMMANDS)} [options]"
            )
        return COMMANDS[name](values, overrides)

    return cli.run(program, define, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
