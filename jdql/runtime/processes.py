"""Several processes as one run: who they are, and what they tell each other.

Every process runs the same program on its own devices and members.  The first one alone
writes files and talks to the user.  In a run of one process all of this costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jdql.runtime import distributed

T = TypeVar("T")
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_MESSAGE = 1_000  # bytes of an error that another process is told


def connect() -> None:
    """Joins the other processes of this run; before JAX first touches a device.

    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID say where
    they are.  Without those JAX asks what started the processes: SLURM, Open MPI, a TPU
    pod or Kubernetes.

    Raises:
      ValueError: neither is there, the variables are incomplete, or nobody answers.
    """
    given = {name: os.environ.get(name, "") for name in _VARIABLES}
    missing = [name for name, text in given.items() if not text]
    settings: dict[str, Any] = {}
    if len(missing) < len(given):
        if missing:
            raise ValueError(f"--distributed: {', '.join(missing)} must be set as well")
        address, processes, number = given.values()
        if not (processes.isdigit() and number.isdigit()):
            raise ValueError(f"--distributed: {', '.join(_VARIABLES[1:])} are numbers")
        settings = {
            "coordinator_address": address,
            "num_processes": int(processes),
            "process_id": int(number),
        }
    try:
        jax.distributed.initialize(**settings)
    except (ValueError, RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"--distributed: the processes of this run cannot be found ({reason}). "
            f"Start it by srun or mpirun, or set {', '.join(_VARIABLES)}"
        ) from error


def alone() -> bool:
    """Whether this process is the whole run."""
    # Asked first, because the count alone would already start the devices.
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_first() -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return alone() or jax.process_index() == 0


def first_only(log: Callable[[str], None]) -> Callable[[str], None]:
    """The log in the first process; one that says nothing in the others."""
    return log if is_first() else lambda line: None


def own_members(members: int) -> slice:
    """Which of the members this process has."""
    if alone():
        return slice(0, members)
    share = members // jax.process_count()
    first = share * jax.process_index()
    return slice(first, first + share)


def own_mesh(mesh: Mesh) -> Mesh:
    """This process's part of a mesh."""
    return mesh if alone() else mesh.local_mesh


def own_part(tree: Any, mesh: Mesh) -> Any:
    """This process's members of arrays sharded over `mesh`, on its own devices."""
    if alone():
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.global_array_to_host_local_array(
        tree, mesh, PartitionSpec(distributed.AXIS)
    )


def to_host(array: jax.Array) -> np.ndarray:
    """The whole of an array that is sharded over the processes, in every one."""
    if alone():
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def gather(array: np.ndarray) -> np.ndarray:
    """Concatenates arrays of equal shape in the order of the processes, exactly."""
    if alone():
        return array
    from jax.experimental import multihost_utils

    # As bytes: on a device 64-bit numbers would lose half of their digits.
    data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    parts = np.asarray(multihost_utils.process_allgather(data))
    flat = np.frombuffer(parts.tobytes(), array.dtype)
    return flat.reshape(-1, *array.shape[1:]).copy()


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; every process gets the same answer."""
    return bool(gather(np.array([flag])).any())


def together(act: Callable[[], T]) -> T:
    """Calls `act` in every process; what one raises, all raise.

    Otherwise the others would wait for ever for a process that is gone.

    Raises:
      ValueError: another process failed; the message is its own.
    """
    if alone():
        return act()
    failure: Exception | None = None
    try:
        result = act()
    except Exception as error:
        failure = error
    text = "" if failure is None else f"{type(failure).__name__}: {failure}"
    told = np.frombuffer(text.encode()[:_MESSAGE].ljust(_MESSAGE, b"\0"), np.uint8)
    messages = gather(told[None])
    if failure is not None:
        raise failure
    for process, message in enumerate(messages):
        if message.any():
            what = message.tobytes().rstrip(b"\0").decode(errors="replace")
            raise ValueError(f"process {process} failed: {' '.join(what.split())}")
    return result


def first_does(act: Callable[[], str]) -> str:
    """Calls `act` in the first process only, and tells every one what it returned."""
    text = together(lambda: act() if is_first() else "").encode()
    if alone():
        return text.decode()
    length = int(gather(np.array([len(text)])).max())
    told = np.frombuffer(text.ljust(length, b"\0"), np.uint8)[None]
    return gather(told)[0].tobytes().decode()


def first_ahead(act: Callable[[], T]) -> T:
    """Calls `act` in the first process, and in the others when that one has returned.

    Where `act` stores a file unless it is there, such as a download, the first process
    stores it and the others find it.
    """
    first = together(lambda: act() if is_first() else None)
    if alone():
        return first  # type: ignore[return-value]
    others = together(lambda: None if is_first() else act())
    return first if is_first() else others  # type: ignore[return-value]
