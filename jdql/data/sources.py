"""From what a config names to a checked dataset in memory.

An entry of `config.dataset` is one of

- a file, by its ending: .hdf5 or .h5 (D4RL's), .npz;
- a dataset in LeRobot's format, as a folder, or on the Hugging Face hub as
  `hf://datasets/OWNER/NAME`;
- `package.module:function`, a function without arguments that returns a `Source`, or
  a dictionary of arrays in the layout of `jdql.data.npz`;
- a Minari id.  Minari's copy is taken where it is here or can be downloaded; otherwise
  jdql collects a dataset of its own in its place, under an id of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from jdql.config import DataConfig
from jdql.data import d4rl, lerobot, minari, npz, pusht, rewards
from jdql.data import scaling as scalings
from jdql.data.dataset import (
    Dataset,
    Source,
    agent_spec,
    check,
    data_return,
    make_source,
)
from jdql.data.episodes import concatenate, hold_out, select_episodes
from jdql.data.scaling import Scaling
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
    """Reads, concatenates, checks, transforms and scales what a config names.

    Args:
      config: Every field is used.
      collect: Makes jdql's own datasets; without it nothing is ever collected.
      log: Receives lines that say what was read, and from where.

    Returns:
      The data, float32 on the host.  Its `id` joins with "+" what was really read;
      `data_return` is in rewards before the transform.  The statistics of transform and
      scaling are those of the training data: the episodes kept and not held out.

    Raises:
      ValueError: a setting is wrong, or the data may not be trained on.
      FileNotFoundError: there is no such file or dataset.
    """
    transform = rewards.by_name(config.reward)
    scalings.by_name(config.scale_observations, "data.scale_observations")
    scalings.by_name(config.scale_actions, "data.scale_actions")
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
    source = _split(source, config.held_out)
    mean, std = source.data_return
    log(
        f"data: {source.id}, {source.dataset.size:,} transitions in "
        f"{len(source.dataset.episode_ends):,} episodes, mean return {mean:.1f} "
        f"(std {std:.1f}), rewards: {config.reward}"
    )
    training = source.dataset
    source = _on_both(source, lambda dataset: transform(dataset, training))
    scaling = scalings.fit(training.observation, training.action, config)
    spec = agent_spec(source.spec, scaling.action, config.scale_actions)
    return apply_scaling(source, scaling, spec)


def _read(entry: str, config: DataConfig, collect: Collect | None, log: Log) -> Source:
    if entry.endswith((".hdf5", ".h5")):
        return d4rl.read(entry)
    if entry.endswith(".npz"):
        return _read_npz(entry, config.columns)
    if lerobot.is_name(entry):
        return lerobot.read(lerobot.locate(entry))._replace(id=entry)
    if ":" in entry and "://" not in entry:
        return _call(entry)
    if not minari.is_id(entry):
        raise ValueError(
            f"'{entry}' names no data: expected a Minari id such as "
            "mujoco/walker2d/medium-v0, a path ending in .hdf5 or .npz, a folder of "
            "LeRobot's, hf://datasets/OWNER/NAME, or package.module:function "
            f"({minari.nearest(entry)})"
        )
    return minari.read(locate(entry, config, collect=collect, log=log))


def _read_npz(entry: str, columns: str) -> Source:
    arrays = npz.read_arrays(npz.locate(entry))
    if not columns and all(name in arrays for name in pusht.COLUMNS):
        return pusht.from_columns(arrays, entry)
    return npz.from_columns(arrays, entry, npz.columns(columns))


def _choose(source: Source, episodes: str) -> Source:
    """Keeps the episodes of a slice, which the id then tells."""
    if not episodes:
        return source
    dataset = select_episodes(source.dataset, episodes)
    name = f"{source.id}[{episodes}]"
    return source._replace(id=name, dataset=dataset, data_return=data_return(dataset))


def _split(source: Source, held_out: int) -> Source:
    """Keeps the last episodes out of training, which the id then tells."""
    dataset, kept_out = hold_out(source.dataset, held_out)
    if kept_out is None:
        return source
    return source._replace(
        id=f"{source.id}[:-{held_out}]",
        dataset=dataset,
        data_return=data_return(dataset),
        held_out=kept_out,
    )


def _on_both(source: Source, change: Callable[[Dataset], Dataset]) -> Source:
    """The source with its training data and what is held out changed."""
    kept_out = source.held_out
    return source._replace(
        dataset=change(source.dataset),
        held_out=None if kept_out is None else change(kept_out),
    )


def apply_scaling(source: Source, scaling: Scaling, spec: DataSpec) -> Source:
    """A source as it was read on another scale, perhaps one fitted on other data.

    Args:
      source: Nothing in it is scaled.
      scaling: The maps.
      spec: The spec that agents see on this scale.
    """

    def scaled(dataset: Dataset) -> Dataset:
        if not scalings.is_identity(scaling.observation):
            seen = scaling.observation.forward
            dataset = dataset._replace(
                observation=seen(dataset.observation),
                next_observation=seen(dataset.next_observation),
            )
        if not scalings.is_identity(scaling.action):
            dataset = dataset._replace(action=scaling.action.forward(dataset.action))
        return dataset

    return _on_both(source, scaled)._replace(scaling=scaling, agent_spec=spec)


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
    return make_source(names, dataset, parts[0].spec)


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
