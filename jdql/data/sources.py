"""From what a config names to a checked dataset in memory.

An entry of `config.dataset` is one of

- a file, by its ending: .hdf5 or .h5 (D4RL's), .npz;
- `package.module:function`, a function without arguments that returns a `Source`, or
  a dictionary of arrays in the layout of `jdql.data.npz`;
- a Minari id.  Minari's copy is taken where it is here or can be downloaded; otherwise
  jdql collects a dataset of its own in its place, under an id of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from jdql.config import DataConfig
from jdql.data import d4rl, minari, normalize, npz, rewards
from jdql.data.dataset import Source, check, concatenate, data_return, select_episodes
from jdql.types import DataSpec

DEFAULT_STEPS = DataConfig().collect_steps
SOURCES = ("auto", "minari", "local")

Log = Callable[[str], None]


# `(dataset_id, steps, *, log) -> id`: makes jdql's own dataset in place of the Minari
# one of that id (`jdql.collect.collect.collect`).
Collect = Callable[..., str]


def load(
    config: DataConfig, *, collect: Collect | None = None, log: Log = print
) -> Source:
    """Reads, concatenates, checks and transforms what a config names.

    Args:
      config: Every field is used.
      collect: Makes jdql's own datasets; without it nothing is ever collected.
      log: Receives lines that say what was read, and from where.

    Returns:
      The data, float32 on the host.  Its `id` joins with "+" what was really read;
      `data_return` is in rewards before the transform.

    Raises:
      ValueError: a setting is wrong, or the data may not be trained on.
      FileNotFoundError: there is no such file or dataset.
    """
    transform = rewards.by_name(config.reward)
    if config.source not in SOURCES:
        raise ValueError(
            f"data.source must be one of {', '.join(SOURCES)}, it is '{config.source}'"
        )
    if not config.dataset:
        raise ValueError(
            "data.dataset is empty: name a Minari id, an .hdf5 or .npz file, or "
            "package.module:function"
        )
    parts = [_read(entry, config, collect, log) for entry in config.dataset]
    for part in parts:
        check(part.dataset, part.spec, name=part.id)
    source = _choose(_join(parts), config.episodes)
    mean, std = source.data_return
    log(
        f"data: {source.id}, {source.dataset.size:,} transitions in "
        f"{len(source.dataset.episode_ends):,} episodes, mean return {mean:.1f} "
        f"(std {std:.1f}), rewards: {config.reward}"
    )
    source = source._replace(dataset=transform(source.dataset))
    return apply_scaling(source, normalize.fit(source.dataset.observation, config))


def _read(entry: str, config: DataConfig, collect: Collect | None, log: Log) -> Source:
    if entry.endswith((".hdf5", ".h5")):
        return d4rl.read(entry)
    if entry.endswith(".npz"):
        file = npz.read(npz.locate(entry), npz.columns(config.columns))
        return file._replace(id=entry)
    if ":" in entry and "://" not in entry:
        return _call(entry)
    if not minari.is_id(entry):
        raise ValueError(
            f"'{entry}' names no data: expected a Minari id such as "
            "mujoco/walker2d/medium-v0, a path ending in .hdf5 or .npz, or "
            f"package.module:function ({minari.nearest(entry)})"
        )
    return minari.read(locate(entry, config, collect=collect, log=log))


def _choose(source: Source, episodes: str) -> Source:
    """Keeps the episodes of a slice, which the id then tells."""
    if not episodes:
        return source
    dataset = select_episodes(source.dataset, episodes)
    name = f"{source.id}[{episodes}]"
    return source._replace(id=name, dataset=dataset, data_return=data_return(dataset))


def apply_scaling(source: Source, scaling: normalize.Scaling | None) -> Source:
    """The source with its observations scaled, perhaps by other data's statistics."""
    if scaling is None:
        return source
    data = source.dataset
    dataset = data._replace(
        observation=scaling(data.observation),
        next_observation=scaling(data.next_observation),
    )
    return source._replace(dataset=dataset, scaling=scaling)


def _call(entry: str) -> Source:
    """Calls the function that `package.module:function` names."""
    module_name, _, function_name = entry.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"'{entry}': {module_name} cannot be imported ({error})"
        ) from error
    function = vars(module).get(function_name)
    if not callable(function):
        raise ValueError(f"'{entry}': {module_name} has no function '{function_name}'")
    made = function()
    if isinstance(made, Source):
        return made
    if isinstance(made, Mapping):
        return npz.from_columns(dict(made), entry)
    raise ValueError(
        f"'{entry}' returned a {type(made).__name__}; it must return a "
        "jdql.data.dataset.Source or a dictionary of arrays (see jdql/data/npz.py)"
    )


def locate(
    dataset_id: str,
    config: DataConfig,
    *,
    collect: Collect | None = None,
    log: Log = print,
) -> str:
    """The id of the local dataset to read for a Minari id, fetched or made if need be.

    Raises:
      FileNotFoundError: it is not here, and may not or cannot be had otherwise.
      ValueError: collecting it is impossible.
    """
    ours = dataset_id.startswith("jdql/")
    if minari.exists(dataset_id) and (ours or config.source != "local"):
        return dataset_id
    reason = ""
    if config.source != "local" and not ours:
        reason = _fetch(dataset_id, log)
        if not reason:
            return dataset_id
    if config.source == "minari":
        raise FileNotFoundError(
            f"{reason or f'{dataset_id!r} is not in {minari.root()}'}; source=minari "
            f"forbids collecting one: run `minari download {dataset_id}` where there "
            f"is a network, or use source=auto ({minari.nearest(dataset_id)})"
        )
    return _own(dataset_id, reason, config, collect, log)


def _own(
    dataset_id: str, reason: str, config: DataConfig, collect: Collect | None, log: Log
) -> str:
    """The id of jdql's own dataset in place of a Minari one, made if need be."""
    own = local_id(dataset_id, config.collect_steps)
    if reason:
        log(f"{reason}; jdql's own {own} takes its place (not the same data)")
    if minari.exists(own):
        return own
    if collect is None:
        raise FileNotFoundError(
            f"no dataset '{own}' in {minari.root()} ({minari.nearest(own)})"
        )
    try:
        return collect(dataset_id, config.collect_steps, log=log)
    except ValueError as error:
        if not reason:
            raise
        raise ValueError(
            f"{reason}; {error}; run `minari download {dataset_id}` where there is a "
            f"network ({minari.nearest(dataset_id)})"
        ) from error


def _fetch(dataset_id: str, log: Log) -> str:
    """Downloads a dataset; returns why that failed, or nothing."""
    if not minari.server_answers():
        return (
            f"'{dataset_id}' is not in {minari.root()} and Minari's server does not "
            "answer"
        )
    log(f"downloading {dataset_id} into {minari.root()}")
    try:
        minari.download(dataset_id)
    except ValueError as error:
        return str(error)
    return ""


def _join(parts: list[Source]) -> Source:
    if len(parts) == 1:
        return parts[0]
    dataset = concatenate([part.dataset for part in parts])
    specs = {part.spec for part in parts}
    names = "+".join(part.id for part in parts)
    if len(specs) > 1:
        raise ValueError(f"{names}: their action spaces differ: {_bounds(specs)}")
    return Source(names, dataset, parts[0].spec, data_return(dataset))


def _bounds(specs: set[DataSpec]) -> str:
    return " and ".join(f"{s.action_low} to {s.action_high}" for s in specs)


def local_id(dataset_id: str, steps: int = DEFAULT_STEPS, seed: int = 0) -> str:
    """The id of jdql's own dataset in place of a Minari one.

    `mujoco/walker2d/medium-v0` becomes `jdql/walker2d/medium-v0`.  Another number of
    steps or another seed makes another dataset and is named in the id
    (`jdql/walker2d/medium-50000-s1-v0`), so that a small one is never taken for the
    full one.  Recorded training (medium-replay) has one size and no seed.
    """
    rest = dataset_id.partition("/")[2] or dataset_id
    name, _, version = rest.rpartition("-v")
    if name.endswith("-replay"):
        return f"jdql/{name}-v{version}"
    size = "" if steps == DEFAULT_STEPS else f"-{steps}"
    return f"jdql/{name}{size}{f'-s{seed}' if seed else ''}-v{version}"
