"""Which device trains which member, decided in this one place.

Members (seeds, and swept hyper-parameters) are the leading axis of every stacked array.
That axis is sharded over a mesh.  Within a device an accelerator takes its members all
at once (vmap: nearly free until the chip is full), and a CPU core takes them one after
another (vmap would cost it a quarter more for each).

The mesh may span several processes; what those tell each other is in
`jdql.runtime.processes`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "members"
ON_ACCELERATOR, ON_CPU = 16, 4  # seeds in one process unless told otherwise

PRECISIONS = {
    "float32": "float32",
    "tf32": "tensorfloat32",
    "bfloat16": "bfloat16",
}
_FORCED = "xla_force_host_platform_device_count"


def _largest_divisor(number: int, most: int) -> int:
    return max(d for d in range(1, most + 1) if number % d == 0)


def usable_cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def configure(
    members: int | None = None, precision: str = "float32", cache: str = ""
) -> None:
    """Sets JAX up; must run before JAX first touches a device.

    Makes each CPU core a device of one thread, where that divides the members; this
    changes nothing on an accelerator.  A device a core beats one device of many
    threads: the matrices of these networks are too small to be worth splitting.  A
    number of devices that XLA_FLAGS forces is kept.

    Args:
      members: how many will be trained; None: as many as a CPU trains by default; 0:
        not known yet, so that every core is a device.
      precision: of matrix products, a key of `PRECISIONS`.  Without it JAX would take
        TF32 for float32 on a GPU.
      cache: folder of the persistent compilation cache; "" for none.

    Raises:
      ValueError: for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"train.precision must be one of {sorted(PRECISIONS)}, got {precision!r}"
        )
    jax.config.update("jax_default_matmul_precision", PRECISIONS[precision])
    if cache:
        folder = os.path.expanduser(cache)
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # XLA's own choice is 256 bits; where a core has 512, acting gains 12 % of it.
    _add_flag("--xla_cpu_prefer_vector_width", "512")
    if _FORCED in os.environ["XLA_FLAGS"]:
        return
    members = ON_CPU if members is None else members
    devices = _largest_divisor(members, usable_cores())
    jax.config.update("jax_num_cpu_devices", devices)
    if devices > 1:
        _add_flag("--xla_cpu_multi_thread_eigen", "false")


def _add_flag(name: str, value: str) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {name}={value}".strip()


def on_cpu() -> bool:
    """Whether the members are trained on CPU cores."""
    return jax.default_backend() == "cpu"


def check_precision(precision: str) -> None:
    """Refuses to train in a precision that the device has no products of.

    Raises:
      ValueError: another than float32 on a CPU, where it would silently be float32.
    """
    if precision != "float32" and on_cpu():
        raise ValueError(
            f"train.precision={precision} needs a GPU or TPU: take float32 on a CPU"
        )


def default_members() -> int:
    """Seeds in one run when the user names no number, a multiple of the processes."""
    fewest = ON_CPU if on_cpu() else ON_ACCELERATOR
    return -(-fewest // jax.process_count()) * jax.process_count()


def member_mesh(members: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh for `members`, which every process of a run shares.

    Each process takes an equal part of the members, in the order of its number, and of
    its devices the largest number that divides that part.

    Args:
      members: S.
      devices: to choose from; all by default.

    Raises:
      ValueError: the members do not divide evenly among the processes.
    """
    devices = jax.devices() if devices is None else devices
    owners = sorted({device.process_index for device in devices})
    if members % len(owners):
        below = members // len(owners) * len(owners)
        fitting = " or ".join(str(n) for n in (below, below + len(owners)) if n)
        raise ValueError(
            f"{members} members do not divide among {len(owners)} processes: take "
            f"{fitting} (seeds times the values of a sweep)"
        )
    theirs = [[d for d in devices if d.process_index == owner] for owner in owners]
    count = _largest_divisor(members // len(owners), min(map(len, theirs)))
    chosen = [device for own in theirs for device in own[:count]]
    return Mesh(np.asarray(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def sharded(mesh: Mesh) -> NamedSharding:
    """Placement of arrays whose leading axis is the members."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Placement of arrays that every device needs whole, such as the dataset."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Places host arrays, of which every process holds the whole, on the devices."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    # device_put would send the whole of a dataset around to compare it.
    def place(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        )

    return jax.tree.map(place, tree)


def donated(mesh: Mesh, *arguments: int) -> tuple[int, ...]:
    """The arguments of a program over `mesh` that may be donated.

    None on several CPU devices: XLA runs a program that donates on one CPU device after
    the other instead of on all at once, which halves the speed on two cores.
    """
    return () if on_cpu() and mesh.size > 1 else arguments


def pick(stacked: Any, i: Any) -> Any:
    """`leaf[i]` of every leaf, in a loop over i, so that XLA keeps it in the loop.

    Of an axis of length one XLA knows the element without knowing i.  It would compute
    before the loop what needs nothing else, in another program than for a longer axis.

    Args:
      stacked: arrays (N, ...).
      i: in [0, N - 1]; it must depend on the turn of the loop.
    """
    one = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), stacked
    )
    return jax.lax.optimization_barrier((i, one))[1]


def scan(
    turn: Callable[[Any, Any], tuple[Any, Any]], carry: Any, count: int
) -> tuple[Any, Any]:
    """`lax.scan` over 0 to count - 1, on a CPU equal to the bit for any count.

    XLA's CPU compiler adds the terms of a sum in the order that suits the program
    around it.  A loop of one turn it replaces by its body, whose constants it then
    folds as it does not in a loop, and other sums come out.  So it is not told the
    number of turns, and compiles the body as that of a loop even for one.

    An accelerator is told: it would wait for the host's decision after each turn.

    Args:
      turn: `(carry, i) -> (carry, output)`.
      carry: before the first turn.
      count: number of turns, at least 1.

    Returns:
      The carry after the last turn, and the outputs stacked, (count, ...).
    """
    if not on_cpu():
        return jax.lax.scan(turn, carry, np.arange(count, dtype=np.int32))
    first = np.int32(0)
    turn, closed_over = jax.closure_convert(turn, carry, first)  # traced once
    _, one = jax.eval_shape(turn, carry, first, *closed_over)
    empty = jax.tree.map(lambda o: jax.lax.empty((count, *o.shape), o.dtype), one)

    def body(i: Any, loop: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, output = turn(loop[0], i, *closed_over)
        write = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return carry, jax.tree.map(write, loop[1], output)

    turns = jax.lax.optimization_barrier(np.int32(count))
    return jax.lax.fori_loop(0, turns, body, (carry, empty))


def map_members(fn: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """Maps `fn(member, shared)` over the leading axis of its first argument.

    Args:
      fn: of one member's arrays and of arrays that all members share.
      mesh: from `member_mesh`.

    Returns:
      A function of the stacked members, sharded over the mesh, and of the shared
      arrays; to be jitted by the caller.
    """

    def on_device(members: Any, shared: Any) -> Any:
        if not on_cpu():
            return jax.vmap(fn, in_axes=(0, None))(members, shared)
        count = len(jax.tree.leaves(members)[0])
        return scan(lambda _, i: ((), fn(pick(members, i), shared)), (), count)[1]

    specs = (PartitionSpec(AXIS), PartitionSpec())
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )
