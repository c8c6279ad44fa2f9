"""Datasets in LeRobot's format: parquet files with a row for each step.

    python -m experiments.run --config.data.dataset=hf://datasets/lerobot/pusht_keypoints

All versions of the format hold the steps in `data/**/*.parquet`: one file an episode,
or several in a file.  Read are `action`, `episode_index`, `frame_index`, the vectors
`observation.environment_state` and `observation.state`, joined in this order, and,
where they are there, `next.reward` and `next.success`.  Images are not read.

An episode ends where the next one begins, and truly ends if its last step has
`next.success`.  `next.done` is not read: in the recordings of PushT it marks the last
two steps of an episode.  The format holds no observation after the last action, for
which the last one stands in, and no bounds of actions: they are those of the data.

pyarrow (`pip install 'jdql[lerobot]'`) is imported where it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jdql.data.dataset import Source, make_source, make_spec, whole_episodes

HUB = "hf://datasets/"
OBSERVATIONS = ("observation.environment_state", "observation.state")
NEEDED = ("action", "episode_index", "frame_index")
OPTIONAL = ("next.reward", "next.success")


def is_name(entry: str) -> bool:
    """Whether a text names a dataset on the hub, or a folder that holds one."""
    if entry.startswith("hf://"):
        return True
    return (Path(entry).expanduser() / "meta" / "info.json").is_file()


def locate(entry: str) -> Path:
    """The folder of a dataset, fetched from the hub if it is there.

    Raises:
      ValueError: the address is of another kind.
      FileNotFoundError: it is not on the hub, or the hub cannot be reached.
    """
    if not entry.startswith("hf://"):
        return Path(entry).expanduser()
    repository = entry.removeprefix(HUB).strip("/")
    if repository.count("/") != 1 or not entry.startswith(HUB):
        raise ValueError(f"'{entry}' must be {HUB}OWNER/NAME")
    return _fetch(repository)


def _fetch(repository: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(
            repository, repo_type="dataset", allow_patterns=["data/*", "meta/*"]
        )
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else "no reason given"
        raise FileNotFoundError(
            f"the dataset {repository} cannot be had from the Hugging Face hub "
            f"({reason}): name a folder that holds it instead"
        ) from error
    return Path(folder)


def read(folder: str | Path) -> Source:
    """Reads a dataset.

    Args:
      folder: with the folder `data`.

    Raises:
      FileNotFoundError: there are no parquet files.
      ValueError: pyarrow is not installed, or a file is damaged or lacks a column.
    """
    folder = Path(folder)
    columns = _read_columns(folder)
    order = np.lexsort((columns["frame_index"], columns["episode_index"]))
    columns = {name: column[order] for name, column in columns.items()}
    observations = [columns[name] for name in OBSERVATIONS if name in columns]
    episode = columns["episode_index"]
    ends = np.flatnonzero(np.diff(episode, append=episode[-1] + 1)) + 1
    dataset = whole_episodes(
        np.concatenate(observations, axis=1),
        columns["action"],
        columns.get("next.reward", np.zeros(len(episode))),
        ends,
        columns.get("next.success"),
    )
    low, high = dataset.action.min(axis=0), dataset.action.max(axis=0)
    apart = (low == high).astype(np.float32)  # a constant action has bounds about it
    name = str(folder)
    spec = make_spec(dataset, low - apart, high + apart, name=name)
    return make_source(name, dataset, spec)


def _read_columns(folder: Path) -> dict[str, np.ndarray]:
    """The columns of all files, scalars [N] and vectors [N, D]."""
    files = sorted((folder / "data").glob("**/*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no data/**/*.parquet: it is no dataset in LeRobot's format"
        )
    parts = [_read_file(file) for file in files]
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _read_file(file: Path) -> dict[str, np.ndarray]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ValueError(
            f"reading {file} needs pyarrow: pip install 'jdql[lerobot]'"
        ) from error
    try:
        known = parquet.read_schema(file).names
        wanted = [n for n in (*OBSERVATIONS, *NEEDED, *OPTIONAL) if n in known]
        table = parquet.read_table(file, columns=wanted)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} is damaged or no parquet file ({reason})") from error
    missing = [name for name in NEEDED if name not in known]
    if not any(name in known for name in OBSERVATIONS):
        missing.append(" or ".join(OBSERVATIONS))
    if missing:
        raise ValueError(
            f"{file} lacks {', '.join(missing)} (it has {', '.join(known)})"
        )
    return {name: _array(table.column(name), f"{file}: {name}") for name in wanted}


def _array(column: Any, name: str) -> np.ndarray:
    """A column of numbers [N], or of vectors of one length [N, D]."""
    from pyarrow import types

    kind = column.type
    if not (types.is_list(kind) or types.is_fixed_size_list(kind)):
        return column.to_numpy()
    rows = column.to_pylist()
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"{name} has vectors of different lengths")
    made = np.asarray(rows)
    # Scalars may be stored as vectors of one number.
    scalar = name.endswith((*OPTIONAL, "_index"))
    return made[:, 0] if scalar else made
