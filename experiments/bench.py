"""Measures speed: training, acting, evaluation, loading, saving, compiling.

    python -m experiments.bench                       # all of them, at default sizes
    python -m experiments.bench train --seeds=1,4,16,64,256 --steps=5,100
    taskset -c 0 python -m experiments.bench train --seeds=1 --steps=5,100
    python -m experiments.bench act --agents=diffuser,diffusion_policy --size=authors
    python -m experiments.bench act --agents=diffusion_ql --batch=1,16,256
    python -m experiments.bench policy --steps=5,50,100,1000

train, act, compile and policy need only jax, flax, optax and chex, and data made up on
the spot; eval needs the simulator, load Minari, save Orbax. policy compares the update
of the policy alone, of EDP and of Diffusion-QL. Figures are medians of five blocks with
the range beside them. Every table begins with this machine's matrix-product speed,
measured in the same run, since a shared machine is as fast as its neighbours let it be.
act has the systems of experiments/benchmarks/policies.py at their cheaper ways too,
those of --agents if given; evaluations are calls of the denoiser for one trajectory.
Options take lists: --seeds, --steps (of diffusion), --batch, --precision, --agents.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.benchmarks import policies
from experiments.benchmarks.acting import bench_act, bench_eval
from experiments.benchmarks.loading import bench_load
from experiments.benchmarks.machine import Row, Settings, machine
from experiments.benchmarks.policy import bench_policy
from experiments.benchmarks.saving import bench_save
from experiments.benchmarks.training import bench_compile, bench_train
from experiments.launch import cli
from experiments.launch.overrides import Override

MODES: dict[str, Callable[[Settings, Row], list[Row]]] = {
    "train": bench_train,
    "act": bench_act,
    "eval": bench_eval,
    "load": bench_load,
    "save": bench_save,
    "compile": bench_compile,
    "policy": bench_policy,
}


def define(values: flags.FlagValues) -> None:
    """The program's flags."""

    def strings(name: str, default: str, text: str) -> None:
        flags.DEFINE_list(name, default.split(","), text, flag_values=values)

    flags.DEFINE_list(
        "modes",
        [],
        f"{', '.join(MODES)}, also without --modes; all if none is named",
        flag_values=values,
    )
    strings("seeds", "1,4", "members at once, for train and eval")
    strings("steps", "5", "diffusion steps of Diffusion-QL")
    strings(
        "batch",
        "256",
        "batch sizes for train; states at once for act, there 1 if not given",
    )
    strings("precision", "float32", "float32, tf32, bfloat16")
    flags.DEFINE_list("agents", [], "act: only these systems", flag_values=values)
    flags.DEFINE_enum(
        "size", "cpu", ["cpu", "authors"], "act: of the networks", flag_values=values
    )
    flags.DEFINE_string("json", None, "also write the rows here", flag_values=values)


def program(values: flags.FlagValues, overrides: list[Override]) -> int:
    """Runs the modes and prints their tables."""
    if overrides:
        raise ValueError("bench takes no --config settings: see --help")
    modes = values.modes or list(MODES)
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} cannot be measured: there are {list(MODES)}")
    batch = _numbers(values.batch, "batch")
    settings = Settings(
        _numbers(values.seeds, "seeds"),
        _numbers(values.steps, "steps"),
        batch,
        values.precision,
        batch if values["batch"].present else [1],
        values.agents,
        values.size,
    )
    policies.chosen(settings.agents, settings.steps)  # refuses unknown ones at once
    from jdql.runtime import distributed

    distributed.configure(max(settings.seeds))
    for precision in settings.precision:
        distributed.check_precision(precision)
    rows = [machine()]
    show("machine", rows)
    for mode in modes:
        found = MODES[mode](settings, rows[0])
        show(mode, found)
        rows += found
    if values.json:
        Path(values.json).write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _numbers(texts: Sequence[str], name: str) -> list[int]:
    if not all(text.isdigit() and int(text) > 0 for text in texts):
        raise ValueError(f"--{name} takes whole numbers from 1, got {','.join(texts)}")
    return [int(text) for text in texts]


def show(title: str, rows: list[Row]) -> None:
    """Prints rows as an aligned table."""
    columns = list(rows[0])
    cells = [columns] + [[_text(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}", flush=True)
    for line in cells:
        print("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)))
    sys.stdout.flush()


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list):
        return "-".join(_text(v) for v in value)
    return "-" if value is None else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(program, define, __doc__ or "", argv, rest="modes")


if __name__ == "__main__":
    sys.exit(main())
