"""Minari datasets: reading them, finding them, fetching them.

Minari, Gymnasium and h5py are imported where they are used.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jdql.data import observations
from jdql.data.dataset import Dataset, Source, from_arrays, make_source, make_spec

PROBE_SECONDS = 3.0
_ID = re.compile(r"\w[-\w]*(/\w[-\w]*)*-v\d+")


def root() -> Path:
    """Minari's folder of datasets ($MINARI_DATASETS_PATH or ~/.minari/datasets)."""
    from minari.storage import get_dataset_path

    return Path(get_dataset_path())


def is_id(text: str) -> bool:
    """Whether a text has the form of a Minari id, such as `mujoco/hopper/expert-v0`."""
    return _ID.fullmatch(text) is not None


def exists(dataset_id: str) -> bool:
    """Whether there is a local copy."""
    return (root() / dataset_id / "data").is_dir()


def local_ids() -> list[str]:
    """The ids of all local datasets."""
    found = sorted(p.parent.parent for p in root().glob("**/data/metadata.json"))
    ids = [path.relative_to(root()).as_posix() for path in found]
    return [i for i in ids if not i.startswith(".")]


def nearest(dataset_id: str) -> str:
    """A phrase that names the local ids most like this one."""
    ids = local_ids()
    close = difflib.get_close_matches(dataset_id, ids, 3, cutoff=0.4)
    if close:
        return f"nearest local ids: {', '.join(close)}"
    return f"local ids: {', '.join(ids[:5])}" if ids else "there are no local datasets"


def read(dataset_id: str) -> Source:
    """Reads a local dataset.

    Truncated episodes bootstrap: `terminal` is Minari's `terminations` alone, and every
    episode holds the observation after its last action.

    Raises:
      FileNotFoundError: there is no local dataset of that id.
      ValueError: its spaces are not vectors, its actions are discrete, or its files are
        damaged.
    """
    if not exists(dataset_id):
        raise FileNotFoundError(
            f"no dataset '{dataset_id}' in {root()} ({nearest(dataset_id)})"
        )
    try:
        return _read(dataset_id)
    except (OSError, KeyError, AssertionError, IndexError, EOFError) as error:
        raise ValueError(_damaged(dataset_id, error)) from error


def _damaged(dataset_id: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"dataset '{dataset_id}' is damaged ({reason}); delete {root() / dataset_id} "
        "and fetch or collect it again"
    )


def _read(dataset_id: str) -> Source:
    import json

    import minari
    from gymnasium import spaces

    try:
        stored = minari.load_dataset(dataset_id)
        steps = int(stored.spec.total_steps)
    except (json.JSONDecodeError, ValueError) as error:
        raise ValueError(_damaged(dataset_id, error)) from error
    name = f"dataset '{dataset_id}'"
    if not isinstance(stored.spec.action_space, spaces.Box):
        raise ValueError(
            f"{name} has the action space {stored.spec.action_space}; jdql trains on "
            "continuous actions (Box)"
        )
    if len(stored.spec.action_space.shape) != 1:
        raise ValueError(
            f"{name} has actions of shape {stored.spec.action_space.shape}; jdql "
            "trains on action vectors"
        )
    space = stored.spec.observation_space
    keys = observations.vector_keys(space, name)
    if steps == 0:
        raise ValueError(f"{name} is empty: it has no transitions")
    sizes = observations.dimension(space, keys), stored.spec.action_space.shape[0]
    dataset = _fill(_episodes(stored), steps, keys, sizes, name)
    box = stored.spec.action_space
    spec = make_spec(dataset, box.low, box.high, name=name)
    return make_source(dataset_id, dataset, spec)


def _episodes(stored: Any) -> Iterator[dict[str, Any]]:
    """Every episode's arrays, without the infos that training has no use for.

    HDF5 files of plain arrays are read directly: Minari's own iterator reads every
    info too, of which the public MuJoCo datasets have a dozen.
    """
    import h5py

    names = ("observations", "actions", "rewards", "terminations")
    path = Path(stored.spec.data_path) / "main_data.hdf5"
    if not path.exists():
        for episode in stored.iterate_episodes():
            yield {name: getattr(episode, name) for name in names}
        return
    with h5py.File(path, "r") as file:
        for index in stored.episode_indices:
            group = file[f"episode_{index}"]
            yield {name: _arrays(group[name]) for name in names}


def _arrays(node: Any) -> Any:
    """An HDF5 array, or the dictionary of arrays that a group holds."""
    import h5py

    if isinstance(node, h5py.Group):
        return {key: _arrays(node[key]) for key in node}
    return node[()]


def _fill(
    episodes: Iterator[dict[str, Any]],
    steps: int,
    keys: tuple[str, ...],
    sizes: tuple[int, int],
    name: str,
) -> Dataset:
    """Copies episodes into arrays made once, so that memory holds the data once."""
    observation = np.empty((steps, sizes[0]), np.float32)
    next_observation = np.empty((steps, sizes[0]), np.float32)
    action = np.empty((steps, sizes[1]), np.float32)
    reward = np.empty(steps, np.float32)
    terminal = np.empty(steps, bool)
    ends: list[int] = []
    end = 0
    for number, episode in enumerate(episodes):
        start, end = end, end + len(episode["rewards"])
        if end == start:
            continue
        rows = observations.flatten(episode["observations"], keys)
        lengths = (len(rows) - 1, len(episode["actions"]), len(episode["terminations"]))
        if set(lengths) != {end - start} or end > steps:
            raise ValueError(
                f"{name}: episode {number} has {len(rows)} observations, {lengths[1]} "
                f"actions, {end - start} rewards and {lengths[2]} terminations (one "
                f"observation more is right), in a dataset of {steps} transitions"
            )
        observation[start:end] = rows[:-1]
        next_observation[start:end] = rows[1:]
        action[start:end] = episode["actions"]
        reward[start:end] = episode["rewards"]
        terminal[start:end] = episode["terminations"]
        ends.append(end)
    if end != steps:
        raise ValueError(
            f"{name}: its metadata promise {steps} transitions, its file has {end}; "
            "delete it and fetch or collect it again"
        )
    return from_arrays(
        observation, action, reward, next_observation, terminal, episode_ends=ends
    )


@contextlib.contextmanager
def staging(dataset_id: str) -> Iterator[None]:
    """Inside, Minari writes into a hidden folder; a whole dataset is moved out of it.

    An interrupted download or collection so leaves nothing that Minari, or jdql, would
    take for a dataset.  Changes $MINARI_DATASETS_PATH while it is active.
    """
    from minari import namespace as namespaces

    target = root() / dataset_id
    # ignore_cleanup_errors: a killed worker may still write its last file.
    with tempfile.TemporaryDirectory(
        prefix=".jdql-", dir=root(), ignore_cleanup_errors=True
    ) as folder:
        before = os.environ.get("MINARI_DATASETS_PATH")
        os.environ["MINARI_DATASETS_PATH"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = before
        parent = dataset_id.rpartition("/")[0]
        if parent and parent not in namespaces.list_local_namespaces():
            namespaces.create_namespace(parent)
        if not target.exists():  # another process may have been faster
            shutil.move(Path(folder) / dataset_id, target)


def server_answers(seconds: float = PROBE_SECONDS) -> bool:
    """Whether the host of Minari's remote can be reached, asked once and briefly.

    The question runs in a thread of its own because a name look-up has no time limit.
    HF_HUB_OFFLINE=1 answers it without asking.
    """
    remote = os.environ.get("MINARI_REMOTE", "hf://farama-minari")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if remote.startswith("hf://"):
        host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        url = f"{host}/api/datasets?author={remote[5:]}&limit=1"
        if offline:
            return False
    else:
        url = "https://storage.googleapis.com"
    answers: list[bool] = []
    thread = threading.Thread(
        target=lambda: answers.append(_responds(url, seconds)), daemon=True
    )
    thread.start()
    thread.join(seconds)
    return bool(answers and answers[0])


def _responds(url: str, seconds: float) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=seconds):
            return True
    except urllib.error.HTTPError as error:
        return error.code in (400, 401, 404)  # there is a server, and it understood
    except (OSError, ValueError):
        return False


def download(dataset_id: str) -> None:
    """Fetches a dataset from Minari's remote into the local folder, with progress.

    Raises:
      ValueError: it is not there, or the transfer failed; the reason is in the message.
    """
    import minari

    try:
        with staging(dataset_id):
            minari.download_dataset(dataset_id)
    except Exception as error:  # every backend has its own kinds of failure
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"'{dataset_id}' could not be downloaded: {reason}") from error
