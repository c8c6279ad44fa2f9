"""What other authors' code computed, in files: settings, parameters, draws."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import reverse
from jdql.types import DataSpec

ROOT = Path(__file__).resolve().parents[3]
Arrays = Mapping[str, np.ndarray]


# Files. -------------------------------------------------------------------------------


def files(name: str, variable: str) -> list[Path]:
    """The `*.npz` of the shared folder `name`, and of the one that `variable` names."""
    shared = Path(os.environ.get("JDQL_SHARED", ROOT.parent / "shared"))
    more = os.environ.get(variable)
    folders = [shared / name, *([Path(more)] if more else [])]
    return [file for folder in folders for file in sorted(folder.glob("*.npz"))]


def kind(file: Path) -> str:
    """What a file holds: `config/kind`, `config/algo`, or "" for tables."""
    with np.load(file) as arrays:
        names = [n for n in ("config/kind", "config/algo") if n in arrays.files]
        return str(arrays[names[0]]) if names else ""


def parameters(files: Iterable[Path], skipped: Mapping[Path, str] | None = None):
    """A parameter for each file, with its name; those of `skipped` say why.

    Where there are no files at all, one that says so.
    """
    reasons = {**dict.fromkeys(files), **(skipped or {})}
    return [_parameter(file, reason) for file, reason in reasons.items()] or [
        pytest.param(None, marks=pytest.mark.skip(reason="no recorded numbers here"))
    ]


def _parameter(file: Path, reason: str | None):
    marks = [] if reason is None else [pytest.mark.skip(reason=reason)]
    return pytest.param(file, id=file.stem, marks=marks)


def load(file: Path) -> Arrays:
    with np.load(file) as arrays:
        return dict(arrays)


# Settings, parameters, draws. ---------------------------------------------------------


def setting(arrays: Arrays, name: str) -> Any:
    """A setting as Python has it: a number, a truth value, a string or a tuple."""
    value = arrays[f"config/{name}"].tolist()
    return tuple(value) if isinstance(value, list) else value


def data_spec(arrays: Arrays) -> DataSpec:
    A = setting(arrays, "act_dim")
    return DataSpec(setting(arrays, "obs_dim"), A, (-1.0,) * A, (1.0,) * A)


def names(arrays: Arrays, prefix: str) -> list[str]:
    """The names behind `prefix`, in order."""
    return sorted(key[len(prefix) :] for key in arrays if key.startswith(prefix))


def tree(arrays: Arrays, prefix: str) -> dict:
    """The arrays `prefix/a.b.c` as nested dictionaries."""
    root: dict = {}
    for name in names(arrays, f"{prefix}/"):
        *path, leaf = name.split(".")
        node = root
        for step in path:
            node = node.setdefault(step, {})
        node[leaf] = jnp.asarray(arrays[f"{prefix}/{name}"])
    return root


class Reader:
    """Hands out draws in the order in which they were made."""

    def __init__(self, arrays: Arrays, prefix: str = "draw/"):
        keys = [f"{prefix}{name}" for name in names(arrays, prefix)]
        self._draws = iter([(key.rsplit("/", 1)[1], arrays[key]) for key in keys])

    def next(self, kind: str) -> jax.Array:
        found, value = next(self._draws)
        assert found == kind
        return jnp.asarray(value)

    def steps(self) -> jax.Array:
        return self.next("timestep").astype(jnp.int32)

    def chain(self, steps: int) -> reverse.ChainDraws:
        """x_K and one draw for each of `steps` steps, rows of a state adjacent."""
        drawn = [self.next("normal") for _ in range(steps + 1)]
        rows = jnp.stack(drawn).reshape(steps + 1, -1, drawn[0].shape[-1])
        return reverse.ChainDraws(rows[0], rows[1:])

    def finish(self) -> None:
        assert next(self._draws, None) is None, "draws are left over"
