"""From what a config names to a checked dataset in memory."""

from __future__ import annotations

DEFAULT_STEPS = 1_000_000


def local_id(dataset_id: str, steps: int = DEFAULT_STEPS, seed: int = 0) -> str:
    """The id of jdql's own dataset in place of a Minari one.

    `mujoco/walker2d/medium-v0` becomes `jdql/walker2d/medium-v0`.  Another number of
    steps or another seed makes another dataset and is named in the id
    (`jdql/walker2d/medium-50000-s1-v0`), so that a small one is never taken for the
    full one.  Recorded training (medium-replay) has one size and no seed.
    """
    rest = dataset_id.partition("/")[2]
    name, _, version = rest.rpartition("-v")
    if name.endswith("-replay"):
        return f"jdql/{name}-v{version}"
    size = "" if steps == DEFAULT_STEPS else f"-{steps}"
    return f"jdql/{name}{size}{f'-s{seed}' if seed else ''}-v{version}"
