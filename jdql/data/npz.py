"""Datasets in .npz files, by the names of their columns.

jdql's own layout is `observations` [N, O], `actions` [N, A], `rewards` [N], `terminals`
[N], `timeouts` [N] and, if there are any, `next_observations` [N, O], `action_low` and
`action_high` [A] (-1 and 1 without them).  Other names are declared by a `Columns`.

Without next observations, row i is followed by observation i + 1; the last row of an
episode that did not truly end has no successor and is dropped.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jdql.data.dataset import Dataset, Source, from_arrays, make_source, make_spec


class Columns(NamedTuple):
    """The names under which a file holds its arrays; the last two may be missing."""

    observations: str = "observations"
    actions: str = "actions"
    rewards: str = "rewards"
    terminals: str = "terminals"
    timeouts: str = "timeouts"
    next_observations: str = "next_observations"


OWN = Columns()
NEORL = Columns("obs", "action", "reward", "done", "truncated", "next_obs")
LAYOUTS = (OWN, NEORL)  # those that `read` tells apart by itself
# Where the files of a folder come from, for those who lack one.
ORIGINS = {
    "neorl2": "github.com/polixir/neorl2_dataset has it under scripts/dataset",
    "pusht": "diffusion-policy.cs.columbia.edu/data/training/pusht.zip has its arrays",
}


def columns(text: str) -> Columns | None:
    """The layout that "observations=s,actions=a,..." declares; None for "".

    A column that is not named keeps jdql's own name.

    Raises:
      ValueError: the text does not read so.
    """
    if not text:
        return None
    pairs = [pair.partition("=") for pair in text.replace(" ", "").split(",")]
    for field, _, name in pairs:
        if field not in Columns._fields or not name:
            raise ValueError(
                f"data.columns must be like observations=s,actions=a with the columns "
                f"{', '.join(Columns._fields)}; it is '{text}'"
            )
    return Columns(**{field: name for field, _, name in pairs})


def shared_folder() -> Path:
    """The folder of recorded data: $JDQL_SHARED, or `shared` beside the repository."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    return Path(os.environ.get("JDQL_SHARED") or beside)


def locate(name: str) -> Path:
    """The file of that name: where it says, or else in `data` of the shared folder.

    Raises:
      FileNotFoundError: it is in neither place.
    """
    path = Path(name).expanduser()
    places = [path] if path.is_absolute() else [path, shared_folder() / "data" / path]
    for place in places:
        if place.is_file():
            return place
    origin = ORIGINS.get(path.parent.name)
    raise FileNotFoundError(
        f"there is no file {' nor '.join(map(str, places))}"
        + (f": {origin}; save it as {places[-1]}" if origin else "")
        + " or name another one with --config.data.dataset=FILE.npz"
    )


def read(path: str | Path, columns: Columns | None = None) -> Source:
    """Reads a file.

    Args:
      path: The file.
      columns: Its layout; None recognises jdql's own and NeoRL-2's.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or lacks a column.
    """
    path = Path(path).expanduser()
    return from_columns(read_arrays(path), str(path), columns)


def from_columns(
    arrays: dict[str, np.ndarray], name: str, columns: Columns | None = None
) -> Source:
    """The data in named arrays that are in memory already.

    Args:
      arrays: The columns.
      name: Becomes the id of the data; errors begin with it.
      columns: As in `read`.

    Raises:
      ValueError: a column is missing, lengths differ, or nothing is left.
    """
    columns = columns or next((c for c in LAYOUTS if not _missing(c, arrays)), OWN)
    require(arrays, columns[:4], name)
    try:
        dataset = transitions(arrays, columns)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    low, high = arrays.get("action_low", -1.0), arrays.get("action_high", 1.0)
    spec = make_spec(dataset, low, high, name=name)
    return make_source(name, dataset, spec)


def transitions(arrays: dict[str, np.ndarray], columns: Columns = OWN) -> Dataset:
    """The transitions that are in the arrays.

    Raises:
      ValueError: the lengths differ, or nothing is left.
    """
    named = {
        field: arrays[name]
        for field, name in columns._asdict().items()
        if name in arrays
    }
    lengths = {field: len(array) for field, array in named.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{columns._asdict()[f]} {n}" for f, n in lengths.items())
        raise ValueError(f"the arrays differ in length: {listed}")
    if lengths["rewards"] == 0:
        raise ValueError("the dataset is empty: it has no transitions")
    terminal = named["terminals"].reshape(-1).astype(bool)
    timeout = named.get("timeouts", np.zeros(terminal.shape)).reshape(-1).astype(bool)
    if "next_observations" in named:
        return from_arrays(
            named["observations"],
            named["actions"],
            named["rewards"].reshape(-1),
            named["next_observations"],
            terminal,
            timeout,
        )
    return _shifted(named, terminal, timeout)


def _shifted(
    named: dict[str, np.ndarray], terminal: np.ndarray, timeout: np.ndarray
) -> Dataset:
    """Transitions to the next row's observation, within episodes."""
    observation = named["observations"]
    last = terminal | timeout
    last[-1] = True
    keep = terminal | ~last
    if not keep.any():
        raise ValueError("no transition has a next observation in this file")
    successor = np.minimum(np.arange(len(last)) + 1, len(last) - 1)
    # A true end has no successor and is not bootstrapped: its own row stands in.
    successor = np.where(terminal, np.arange(len(last)), successor)
    episode = np.cumsum(last) - last
    ends = np.flatnonzero(np.diff(episode[keep], append=-1)) + 1
    return from_arrays(
        observation[keep],
        named["actions"][keep],
        named["rewards"].reshape(-1)[keep],
        observation[successor[keep]],
        terminal[keep],
        episode_ends=ends,
    )


def _missing(columns: Columns, arrays: dict[str, np.ndarray]) -> list[str]:
    return [name for name in columns[:4] if name not in arrays]


def require(arrays: dict[str, np.ndarray], names: tuple[str, ...], file: str) -> None:
    """Raises ValueError where an array is missing."""
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"{file} lacks {', '.join(missing)} (it has {', '.join(sorted(arrays))})"
        )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or no .npz file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is damaged or no .npz file ({reason}); fetch it again"
        ) from error
