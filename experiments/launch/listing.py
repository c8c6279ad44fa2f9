"""What `experiments.run --list` prints: tasks, systems and variants, or one in words.

All of it comes from the table of tasks and the texts of the files; JAX is not imported.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from experiments.configs.tasks import TASKS
from experiments.launch import names
from experiments.launch.task import EPOCH, Task

WIDTH = 88
_NOTES = """\
--config takes a task, a system, or both joined by ":", and variants behind them:
walker2d_medium, edp, edp:hopper_medium:quick.  The scores are Diffusion-QL's;
--list --config=NAME says where a task's number comes from, what it may be compared
with, and what a system does."""


def overview() -> str:
    """Three tables: tasks, systems, variants."""
    return "\n\n".join((_tasks(), _systems(), _variants(), _NOTES))


def explain(name: str) -> str:
    """What is known of the task and the system that a name has.

    Raises:
      ValueError: the name has an unknown word.
    """
    words = names.split(name)
    parts = [describe(TASKS[words.task])] if words.task else []
    files = [names.own_file(word) for word in (words.task, words.system) if word]
    parts += [names.docstring(path) for path in files if path.is_file()]
    return "\n\n".join(parts)


def describe(task: Task) -> str:
    """A row of the table of tasks in words."""
    norm = "none" if task.grad_norm is None else f"{task.grad_norm:g}"
    backup = ", targets of the best of ten actions" if task.max_q_backup else ""
    lines = (
        f"Dataset: {' and '.join(task.datasets)}; {task.data}.",
        f"Simulator: {task.env}, episodes of at most {task.horizon} steps, scored by "
        f"their {task.score} with the reference {task.reference!r}.",
        f"Expect: {task.expect}: {task.source}.",
        f"Time: {task.time}.",
        f"Diffusion-QL: eta {task.eta:g}, learning rate {task.lr:g}, bound of the "
        f"gradient norm {norm}{backup}, rewards: {task.reward}; {task.episodes} "
        f"episodes every {task.every * EPOCH:,} updates; offline selection takes rank "
        f"{task.top_k}.",
    )
    wrapped = (textwrap.fill(s, WIDTH, subsequent_indent="  ") for s in lines)
    command = f"    python -m experiments.run --config={task.name}"
    return "\n".join((f"{task.title}.", "", command, "", *wrapped))


def _tasks() -> str:
    rows = [(t.name, t.expect, t.env, ", ".join(t.datasets)) for t in TASKS.values()]
    return _aligned([("task", "expect", "environment", "dataset"), *rows])


def _systems() -> str:
    found = names.system_names()
    texts = [names.docstring(names.own_file(name)) for name in found]
    rows = [(n, text.partition("\n")[0]) for n, text in zip(found, texts, strict=True)]
    return _aligned([("system", "what it is"), *rows])


def _variants() -> str:
    every = [*names.system_names(), *names.task_names()]
    homes = {"everything": names.GENERAL, **{n: names.own_file(n) for n in every}}
    rows = [
        (name, home, line)
        for home, path in homes.items()
        for name, line in names.variants(path).items()
    ]
    return _aligned([("variant", "of", "what it is"), *rows])


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells as lines with straight columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
