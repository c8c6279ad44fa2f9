"""The words of `--config`, read without importing what they name.

A name is words joined by ":", of which at most one is a system, at most one a task, and
the others are variants, applied in order: `edp:hopper_medium:quick`.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import jdql
from experiments.configs.tasks import TASKS
from experiments.launch.overrides import nearest

CONFIGS = Path(__file__).parents[1] / "configs"
AGENTS = Path(jdql.__file__).parent / "agents"
GENERAL = Path(__file__).with_name("variants.py")  # those of every config
NOT_VARIANTS = ("settings", "get_config")  # of a file's public functions

# What a name leaves out.
DEFAULT_SYSTEM = "diffusion_ql"
DEFAULT_TASK = "walker2d_medium"


class Words(NamedTuple):
    """A name, taken apart; "" where it has no system or no task."""

    system: str
    task: str
    variants: tuple[str, ...]


def task_names() -> list[str]:
    """Names of the tasks, in the order of the table."""
    return list(TASKS)


def system_names() -> list[str]:
    """Names of the systems that have settings for tasks, from the file names alone."""
    others = {"__init__", "tasks", *TASKS}
    return sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem not in others)


def agent_names() -> list[str]:
    """Names of the agents: the files of `jdql.agents` that define a `Config`."""
    return sorted(p.stem for p in AGENTS.glob("*.py") if "Config" in _classes(p))


def _classes(path: Path) -> set[str]:
    return {n.name for n in _parsed(path).body if isinstance(n, ast.ClassDef)}


def own_file(name: str) -> Path:
    """The file of a system, or of a task that has variants of its own."""
    return CONFIGS / f"{name}.py"


def variant_files(system: str, task: str) -> list[Path]:
    """The files whose variants a system has on a task; earlier ones win."""
    own = [own_file(system), own_file(task)]
    return [*(path for path in own if path.is_file()), GENERAL]


def variants(path: Path) -> dict[str, str]:
    """The variants that a file defines, by name, with the first line of their text.

    They are its public functions; where there is no file, there are none.
    """
    if not path.is_file():
        return {}
    functions = (n for n in _parsed(path).body if isinstance(n, ast.FunctionDef))
    return {
        function.name: (ast.get_docstring(function) or "").partition("\n")[0]
        for function in functions
        if not function.name.startswith("_") and function.name not in NOT_VARIANTS
    }


def docstring(path: Path) -> str:
    """The text at the top of a file."""
    return ast.get_docstring(_parsed(path)) or ""


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def split(name: str) -> Words:
    """Takes a name apart.

    Raises:
      ValueError: an unknown word, two systems, two tasks, a variant twice, or neither a
        system nor a task.  The message is one line.
    """
    words = name.split(":")
    system = _at_most_one(name, words, "system", system_names())
    task = _at_most_one(name, words, "task", task_names())
    rest = tuple(word for word in words if word not in {system, task} - {""})
    files = variant_files(system or DEFAULT_SYSTEM, task or DEFAULT_TASK)
    known = {variant for path in files for variant in variants(path)}
    for word in rest:
        if word not in known:
            raise ValueError(f"--config={name}: {_unknown(word, known)}")
        if rest.count(word) > 1:
            raise ValueError(f"--config={name}: the variant {word!r} is there twice")
    if not system and not task:
        raise ValueError(f"--config={name}: name a system or a task too (--list)")
    return Words(system, task, rest)


def _at_most_one(name: str, words: list[str], kind: str, known: list[str]) -> str:
    """The one of the words that is known, or ""."""
    found = [word for word in words if word in known]
    if len(found) > 1:
        raise ValueError(
            f"--config={name}: {' and '.join(found)} are more than one {kind}"
        )
    return found[0] if found else ""


def _unknown(word: str, known: set[str]) -> str:
    """What is said of a word that is no system, no task and no variant of theirs."""
    every = [*system_names(), *task_names()]
    homes = [n for n in every if word in variants(own_file(n))]
    if homes:
        return f"{word!r} is a variant of {' and '.join(homes)} only"
    every += sorted(known)
    return (
        f"there is no system, task or variant {word!r}; the nearest is "
        f"{nearest(word, every)!r} (--list shows all)"
    )
