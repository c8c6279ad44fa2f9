"""D4RL's HDF5 files, read without the d4rl package.

The rules are those of `d4rl.qlearning_dataset` with `terminate_on_end=False`, which the
authors of Diffusion-QL train on: row i is followed by observation i + 1, `terminals`
are the true ends, and the last transition of an episode that timed out is dropped,
since its next observation belongs to the next episode.  So is the file's last row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jdql.data.dataset import Dataset, Source, from_arrays, make_source, make_spec

KEYS = ("observations", "actions", "rewards", "terminals")


def read(path: str | Path, max_episode_steps: int = 1000) -> Source:
    """Reads a file such as `walker2d_medium-v2.hdf5`.

    Args:
      path: The file.
      max_episode_steps: The environment's time limit, used only where the file has no
        `timeouts`.

    Returns:
      The data; its action space is [-1, 1], as in every task of D4RL.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or lacks an array.
    """
    path = Path(path).expanduser()
    arrays = _read_arrays(path)
    try:
        dataset = transitions(arrays, max_episode_steps)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    spec = make_spec(dataset, name=str(path))
    return make_source(str(path), dataset, spec)


def transitions(
    arrays: dict[str, np.ndarray], max_episode_steps: int = 1000
) -> Dataset:
    """The transitions that `d4rl.qlearning_dataset` would make of these arrays.

    Args:
      arrays: `observations` [M, O], `actions` [M, A], `rewards` [M], `terminals` [M]
        and perhaps `timeouts` [M].
      max_episode_steps: As in `read`.

    Returns:
      N <= M - 1 transitions.  The last one kept of a timed-out episode is marked as the
      time-out.

    Raises:
      ValueError: the lengths differ, or nothing is left.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"the arrays differ in length: {listed}")
    terminal = arrays["terminals"].astype(bool)[:-1]
    if "timeouts" in arrays:
        timeout = arrays["timeouts"].astype(bool)[:-1]
    else:
        timeout = _count_timeouts(terminal, max_episode_steps)
    keep = ~timeout
    if not keep.any():
        raise ValueError("the dataset is empty: it has no transitions")
    episode = np.cumsum(terminal | timeout) - (terminal | timeout)
    ends = np.flatnonzero(np.diff(episode[keep], append=-1)) + 1
    return from_arrays(
        observation=arrays["observations"][:-1][keep],
        action=arrays["actions"][:-1][keep],
        reward=arrays["rewards"][:-1][keep].reshape(-1),
        next_observation=arrays["observations"][1:][keep],
        terminal=terminal[keep],
        episode_ends=ends,
    )


def _count_timeouts(terminal: np.ndarray, limit: int) -> np.ndarray:
    """Time-outs by counting steps, as d4rl counts them.

    After a true end d4rl's counter starts at 1 instead of 0; kept, so that the same
    rows are dropped.
    """
    timeout = np.zeros(len(terminal), bool)
    step = 0
    for i, done in enumerate(terminal):
        if step == limit - 1:
            timeout[i] = True
            step = 0
        else:
            step = 1 if done else step + 1
    return timeout


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in KEYS if key not in file]
            names = [*KEYS, "timeouts"] if "timeouts" in file else [*KEYS]
            found = sorted(file)
            arrays = {} if missing else {name: file[name][()] for name in names}
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is damaged or no HDF5 file ({reason}); fetch it again"
        ) from error
    if missing:
        raise ValueError(
            f"{path} is no D4RL file: it lacks {', '.join(missing)} (it has "
            f"{', '.join(found)})"
        )
    return arrays
