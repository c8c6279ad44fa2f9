"""Checkpoints of a run, with Orbax.

Each kept step is one folder with items, every leaf stacked over the S members:

    learned  what the members have learned so far: what acting needs, no more
    best     the same at each member's own best evaluation, where runs are evaluated
    train    the whole TrainState, from which training goes on bit for bit

and metadata in JSON (the run's settings, the seeds, what was best when).  The latest
two steps and the one with the best mean score are kept.  A step appears under its name
only once it is complete, so a crash while saving costs that step and no other.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from jdql.types import Array, Bool

PyTree = Any
_ASIDE = ".replaced"  # suffix of a step that is being written again


class Checkpoints:
    """Writes the checkpoints of one run; use it as a context manager.

    Saving goes on in the background while training continues: the leaves are copied
    before `save` returns, so they may be donated at once.
    """

    def __init__(
        self, directory: str | os.PathLike, *, resume_step: int | None = None
    ) -> None:
        """Opens a run's checkpoint folder for writing.

        What an interrupted save left there is cleaned up.

        Args:
          directory: the folder, made if it is not there.
          resume_step: the step that training goes on from; later ones are deleted, as
            they belong to a future that is about to be written again.

        Raises:
          OSError: the folder cannot be made or read.
        """
        self._directory = Path(os.path.abspath(directory))  # Orbax wants it absolute
        with _one_line(f"cannot open the checkpoint folder {self._directory}"):
            self._directory.mkdir(parents=True, exist_ok=True)
            _on_first_process(lambda: _clean(self._directory, resume_step))
            self._orbax = _checkpointer(self._directory)
        self._writing: int | None = None

    def save(
        self,
        step: int,
        *,
        train: PyTree,
        learned: PyTree,
        best: PyTree | None = None,
        metadata: Mapping[str, Any],
        score: float | None = None,
    ) -> None:
        """Starts saving a step; a step that is already there is replaced.

        Waits for the save before this one first.  Should that one have failed, this
        one is started all the same and the failure is raised afterwards.

        Args:
          step: updates done.
          train: the TrainStates, stacked over members.
          learned: what the members have learned so far, stacked.
          best: the same of each member's best evaluation; None where there is none.
          metadata: what JSON can hold.
          score: the mean score by which the best step is kept; None (not evaluated) or
            a non-finite one never counts as the best.

        Raises:
          OSError: this save or the one before it failed (a full disk, a missing
            permission).  Steps saved earlier are untouched, and training may go on.
          ValueError: the metadata is not JSON.
        """
        finite = score is not None and math.isfinite(score)
        record = _jsonable(
            {**metadata, "step": step, "score": score if finite else None}
        )
        failure = self._finish()
        items = {"learned": learned, "train": train}
        items |= {} if best is None else {"best": best}
        with _one_line(self._failed(step), self._reopen):
            _on_first_process(lambda: _set_aside(self._directory, step))
            self._orbax.reload()
            self._orbax.save_checkpointables_async(
                step,
                _copied(items),
                force=True,  # keeping is decided below, saving by the caller
                metrics={"score": score} if finite else None,
                custom_metadata=record,
            )
        self._writing = step
        if failure is not None:
            raise failure

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          OSError: it failed; earlier steps are untouched.
        """
        failure = self._finish()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Waits for the last save and lets go of the folder.

        Raises:
          OSError: the last save failed; earlier steps are untouched.
        """
        failure = self._finish()
        self._orbax.close()
        if failure is not None:
            raise failure

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish(self) -> OSError | None:
        """Waits for the save under way; returns its failure."""
        if self._writing is None:
            return None
        step, self._writing = self._writing, None
        try:
            with _one_line(self._failed(step), self._reopen):
                self._orbax.wait()
                _on_first_process(lambda: _clean(self._directory))
        except OSError as failure:
            return failure
        return None

    def _reopen(self) -> None:
        """A checkpointer that failed is not used again."""
        with contextlib.suppress(Exception):
            self._orbax.close()
        _on_first_process(lambda: _clean(self._directory))
        self._orbax = _checkpointer(self._directory)

    def _failed(self, step: int) -> str:
        return f"the checkpoint of step {step} was not saved in {self._directory}"


def steps(directory: str | os.PathLike) -> list[int]:
    """The steps that can be restored, ascending; none where there is no folder."""
    folder = Path(directory)
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def metadata(directory: str | os.PathLike, step: int | None = None) -> dict[str, Any]:
    """The metadata saved with a step (the latest one by default).

    Returns:
      What was passed to `save`, and `step` and `score`; tuples have become lists.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the step was not kept.
    """
    from orbax.checkpoint import v1 as ocp

    path = _path(directory, step)
    with _one_line(f"cannot read the checkpoint {path}"):
        return dict(ocp.metadata(path).custom_metadata)


def restore_train(
    directory: str | os.PathLike,
    abstract_state: PyTree,
    step: int | None = None,
    sharding: Sharding | None = None,
) -> PyTree:
    """Restores the TrainStates of all members, on any number and kind of devices.

    Args:
      directory: the checkpoint folder.
      abstract_state: arrays or `jax.ShapeDtypeStruct`s in the structure that was saved,
        such as `jax.eval_shape` gives.
      step: a kept step; the latest by default.
      sharding: of every leaf (the member axis leads); the first device by default.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the step was not kept, or its structure or shapes are other ones.
    """
    target = sharding or SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=target),
        abstract_state,
    )
    return _load(_path(directory, step), "train", abstract)


def restore_learned(
    directory: str | os.PathLike,
    abstract: PyTree,
    step: str | int = "last",
    members: Sequence[int] | None = None,
    sharding: Sharding | None = None,
) -> PyTree:
    """Restores what members have learned; the `train` item is not read.

    Args:
      directory: the checkpoint folder.
      abstract: arrays or `jax.ShapeDtypeStruct`s of what all members have learned.
      step: "last", of the latest step; "best", of each member's best evaluation so far;
        or the number of a kept step.
      members: positions of the members that are wanted; all by default.
      sharding: of every leaf; the first device by default.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the step was not kept, nothing was evaluated though the best is
        wanted, there is no such member, or the structure or shapes are other ones.
    """
    number, item = _which(step)
    path = _path(directory, number)
    if item == "best" and not (path / "best").is_dir():
        raise ValueError(f"{directory} has no best: the run was never evaluated")
    # Host arrays first: members are taken out before anything reaches the device.
    stacked = _load(path, item, jax.tree.map(_host_abstract, abstract))
    if members is not None:
        count, index = jax.tree.leaves(stacked)[0].shape[0], np.asarray(members)
        if not ((index >= 0) & (index < count)).all():
            raise ValueError(
                f"no member {members} in {directory}: it has {count}, counted from 0"
            )
        stacked = jax.tree.map(lambda leaf: leaf[index], stacked)
    return jax.device_put(
        stacked, sharding or SingleDeviceSharding(jax.local_devices()[0])
    )


def keep_better(best: PyTree, learned: PyTree, better: Bool[Array, " S"]) -> PyTree:
    """Takes what is new of the members in `better`, and keeps the best of the others.

    Args:
      best: what the members had learned at their best, each leaf (S, ...).
      learned: what they have learned by now, of the same structure.
      better: which members are better than at their best, (S,).
    """

    def choose(old: Array, new: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, best, learned)


def _which(step: str | int) -> tuple[int | None, str]:
    """The number of the step (None: the latest) and the item that `step` asks for."""
    if step in ("last", "best"):
        return None, "learned" if step == "last" else "best"
    if not str(step).isdigit():
        raise ValueError(
            f"step must be last, best or a number of updates, got {step!r}"
        )
    return int(step), "learned"


def _path(directory: str | os.PathLike, step: int | None) -> Path:
    kept = steps(directory)
    if not kept:
        raise FileNotFoundError(f"no checkpoint in {directory}")
    if step is not None and step not in kept:
        raise ValueError(f"step {step} was not kept in {directory}: there are {kept}")
    return Path(os.path.abspath(directory)) / str(kept[-1] if step is None else step)


def _load(path: Path, item: str, abstract: PyTree) -> PyTree:
    from orbax.checkpoint import v1 as ocp

    try:
        loaded = ocp.load_checkpointables(path, {item: abstract})[item]
    except OSError as error:
        raise OSError(f"cannot read {path}: {_first_line(error)}") from error
    except Exception as error:  # Orbax raises many kinds where structures differ
        raise _misfit(path, item, f"other parts ({_first_line(error)})") from error
    # Orbax does not compare the shapes of numpy arrays.
    for expected, leaf in zip(
        jax.tree.leaves(abstract), jax.tree.leaves(loaded), strict=True
    ):
        if expected.shape != leaf.shape:
            why = f"an array of shape {leaf.shape} where {expected.shape} is expected"
            raise _misfit(path, item, why)
    return loaded


def _misfit(path: Path, item: str, why: str) -> ValueError:
    return ValueError(f"{path} does not fit this configuration: {item} has {why}")


def _host_abstract(leaf: Any) -> Any:
    """Asks for a numpy array; for a key, which numpy does not know, a device array."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        device = SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
    return np.empty(leaf.shape, leaf.dtype)


def _copied(tree: PyTree) -> PyTree:
    """A copy that later donated updates cannot reach."""
    return jax.tree.map(
        lambda x: jnp.copy(x) if isinstance(x, jax.Array) else np.array(x), tree
    )


def _checkpointer(directory: Path) -> Any:
    from orbax.checkpoint import v1 as ocp

    keep = ocp.training.preservation_policies
    best = keep.BestN(
        get_metric_fn=lambda metrics: (metrics or {}).get("score", -math.inf),
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    return ocp.training.Checkpointer(
        directory,
        preservation_policy=keep.AnyPreservationPolicy([keep.LatestN(2), best]),
    )


def _set_aside(directory: Path, step: int) -> None:
    """Renames a step about to be written again: it comes back if that fails."""
    old = directory / str(step)
    if old.exists():
        old.rename(old.with_name(old.name + _ASIDE))


def _clean(directory: Path, last: int | None = None) -> None:
    """Removes what unfinished saves left, and steps after `last`."""
    for old in directory.glob(f"*{_ASIDE}"):
        target = old.with_name(old.name.removesuffix(_ASIDE))
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)
    for litter in directory.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(litter)
    if last is not None:
        for step in steps(directory):
            if step > last:
                shutil.rmtree(directory / str(step))


def _on_first_process(act: Callable[[], None]) -> None:
    """Changes the shared folder once, and lets no process go ahead before that."""
    if jax.process_index() == 0:
        act()
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("jdql checkpoint folder")


def _jsonable(value: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(f"checkpoint metadata must be JSON: {error}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


@contextlib.contextmanager
def _one_line(what: str, cure: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turns whatever the storage raises into an OSError of one line."""
    try:
        yield
    except Exception as error:
        cure()
        raise OSError(f"{what}: {_first_line(error)}") from error
