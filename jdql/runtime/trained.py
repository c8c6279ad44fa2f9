"""From a run folder to what it learned: the one way, for commands and for notebooks.

`load` gives one policy to act with.  `open_run`, `restore` and `states` are what it is
made of, for all members of a run at once; `earlier` gives a run what others learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jdql.agents import base
from jdql.agents.base import Acting, Agent, State
from jdql.config import Config
from jdql.data import observations
from jdql.runtime import (
    acting_settings,
    checkpoint,
    distributed,
    members,
    recipe,
    stored,
)
from jdql.runtime.acting import Player
from jdql.runtime.members import Member
from jdql.runtime.metrics import read_rows
from jdql.runtime.recipe import Learned, Recipe
from jdql.types import DataSpec

Row = dict[str, Any]  # of a file of JSON lines


class Run(NamedTuple):
    """A run folder that has a checkpoint.

    Attributes:
      folder: where it is.
      config: its settings.
      members: its S members, seeds and swept settings.
      recipe: how its system is made.
      spec: the environment's sizes and action bounds.
      saved: the metadata of the checkpoint that was asked for.
    """

    folder: Path
    config: Config
    members: list[Member]
    recipe: Recipe
    spec: DataSpec
    saved: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"


def open_run(folder: str | PathLike[str], step: str | int = "last") -> Run:
    """Reads what a run is; no array is read.

    Args:
      folder: of a run.
      step: "last", "best" or the number of a kept checkpoint.

    Raises:
      FileNotFoundError: it has no checkpoint.
      ValueError: it is no run, or has no such step.
    """
    path, config = Path(folder), stored.load(folder)
    number = int(step) if str(step).isdigit() else None
    saved = checkpoint.metadata(path / "checkpoints", number)
    return Run(
        path,
        config,
        members.members_of(config),
        recipe.from_json(saved["recipe"]),
        recipe.spec_from_json(saved["space"]),
        saved,
    )


def restore(
    run: Run, step: str | int = "last", chosen: Sequence[int] | None = None
) -> Learned:
    """What the members of a run have learned, stacked.

    Args:
      run: from `open_run`.
      step: "last", "best" (each member's own) or the number of a kept checkpoint.
      chosen: positions of the members; all by default.

    Raises:
      ValueError: there is no such step, or the run was never evaluated and has no best.
    """
    abstract = recipe.abstract(run.recipe, len(run.members))
    return checkpoint.restore_learned(run.checkpoints, abstract, step, chosen)


def states(run: Run, step: int | None = None) -> State:
    """The TrainStates of all members; `step`: a kept checkpoint, the latest by default.

    Raises:
      ValueError: there is no such step.
    """
    mesh = distributed.member_mesh(1, jax.local_devices()[:1])
    given = recipe.abstract(run.recipe, len(run.members)).given
    inputs = members.stacked(run.config.agent, run.members, given)
    abstract = jax.eval_shape(members.make_init(run.recipe, mesh), inputs)
    return checkpoint.restore_train(run.checkpoints, abstract, step)


# Stages -------------------------------------------------------------------------------


def earlier(
    config: Config, spec: DataSpec, scaling: Any
) -> tuple[dict[str, Recipe], dict[str, Learned]]:
    """The earlier runs that a run builds on, and what they learned, member by member.

    Args:
      config: the run, whose `given` names their folders.
      spec: of its data, as systems see them.
      scaling: of its data.

    Returns:
      By name, how they were made; and what they learned, in the order of the members.

    Raises:
      ValueError: a name is missing or not known, a folder holds no run, or its run is
        unfinished, of another system, on other data or without one of the seeds.
      FileNotFoundError: a run has no checkpoint.
    """
    needed = base.required(config.agent)
    for name in config.given:
        if name not in needed:
            names = ", ".join(needed) or "none"
            raise ValueError(
                f"--config.given.{name}: this system is given {names}, nothing else"
            )
    found = {
        name: _stage(name, systems, config, spec, scaling)
        for name, systems in needed.items()
    }
    recipes = {name: stage[0] for name, stage in found.items()}
    return recipes, {name: stage[1] for name, stage in found.items()}


def _stage(
    name: str, systems: Sequence[str], config: Config, spec: DataSpec, scaling: Any
) -> tuple[Recipe, Learned]:
    flag, kinds = f"--config.given.{name}", " or ".join(systems)
    if not config.given.get(name):
        raise ValueError(
            f"{config.name} builds on an earlier run: give {flag}=FOLDER, the folder "
            f"of a run of {kinds} on the same data (the variant {name} of a system's "
            "config is such a run)"
        )
    folder = str(config.given[name])
    if not stored.is_run(folder):
        raise ValueError(f"{flag}={folder}: there is no run there")
    run = open_run(folder)
    system = run.recipe.make.__module__.removeprefix("jdql.agents.")
    if system not in systems:
        raise ValueError(f"{flag}={folder} is a run of {system}; expected {kinds}")
    step, steps = run.saved["step"], run.config.train.steps
    if step < steps:
        raise ValueError(
            f"{flag}={folder} is unfinished, at update {step} of {steps}: finish it "
            f"first, python -m experiments.run --config={folder}"
        )
    if run.recipe.spec != spec:
        raise ValueError(
            f"{flag}={folder} was trained on data of other sizes or action bounds: "
            f"{_sizes(run.recipe.spec)}, here {_sizes(spec)}"
        )
    learned = restore(run, chosen=_same_seeds(run, config, flag))
    for here, there in zip(
        jax.tree.leaves(scaling), jax.tree.leaves(learned.scaling), strict=False
    ):
        if np.shape(here) != np.shape(there)[1:] or not np.allclose(here, there):
            raise ValueError(
                f"{flag}={folder} saw its data on another scale: use the same data "
                "and the same --config.data settings for both runs"
            )
    return run.recipe, learned


def _sizes(spec: DataSpec) -> str:
    return (
        f"{spec.observation_dim} observation and {spec.action_dim} action numbers "
        f"within {min(spec.action_low):g} to {max(spec.action_high):g}"
    )


def _same_seeds(run: Run, config: Config, flag: str) -> list[int]:
    """The positions in an earlier run of the seeds of this run's members."""
    seeds = [member["seed"] for member in run.members]
    chosen = []
    for member in members.members_of(config):
        seed = member["seed"]
        if seeds.count(seed) != 1:
            have = f"{seeds.count(seed)} members" if seed in seeds else "no member"
            raise ValueError(
                f"{flag}={run.folder} has {have} with seed {seed}; members are matched "
                f"by seed, and its seeds are {sorted(set(seeds))}: set --config.seed "
                "and --config.seeds, and do not sweep the earlier run"
            )
        chosen.append(seeds.index(seed))
    return chosen


# The door -----------------------------------------------------------------------------


class Trained:
    """One trained member of a run, ready to act.

    Attributes:
      config: the settings of the run.
      spec: sizes and action bounds of its environment.
      seed: of the member.
      step: updates that it was trained for.
      learned: all numbers that acting needs (`jdql.runtime.recipe.Learned`).
      agent: the pure functions of its system, which see data on its own scale.
      acting: the pure functions of its policy on the environment's scale,
        `act(learned, carry, observations [C, O], key) -> (rows [h, W], carry)`, actions
        or what `follow` makes actions of (`jdql.agents.base.Acting`); None for a system
        that does not act.
    """

    def __init__(self, run: Run, learned: Learned, member: Member, step: int) -> None:
        """Takes what one member has learned; see `load`."""
        self.config, self.spec, self.step = run.config, run.spec, step
        self.seed: int = member["seed"]
        self.learned = learned
        self.agent: Agent = recipe.of_learned(run.recipe, learned)
        self.acting: Acting | None = recipe.acting(run.recipe)
        self._folder = run.folder
        self._player: Player | None = None
        self._episode = 0

    def reset(self, *, episode: int = 0, begun: ArrayLike | None = None) -> None:
        """Begins a new episode, forgetting what the policy remembers of the last.

        Args:
          episode: its number, which the noise of acting depends on.
          begun: of a batch, the rows that begin anew, [B] of bool; the rest go on.
        """
        if begun is not None and self._player is not None:
            self._player.reset(np.asarray(begun, bool)[None])
            return
        self._player, self._episode = None, episode

    def act(self, observation: Any) -> NDArray[np.float32]:
        """The next action, or one for each row of a batch.

        A policy that plans several actions hands them out one by one, and one that
        plans waypoints follows them; call `reset` when an episode begins.

        Args:
          observation: as the environment gives it, [O] or [B, O], or the dictionary of
            a goal environment.  A batch keeps its number of rows until `reset`.

        Returns:
          The action, [A] or [B, A], in the environment's own units.

        Raises:
          ValueError: the system does not act, or the observation has another size.
        """
        flat = observations.flatten(observation, _goal_keys(observation))
        rows = np.atleast_2d(np.asarray(flat, np.float32))
        if rows.ndim != 2 or rows.shape[1] != self.spec.observation_dim:
            raise ValueError(
                f"an observation has {self.spec.observation_dim} numbers here, and a "
                f"batch is [B, {self.spec.observation_dim}]; got {np.shape(flat)}"
            )
        if self._player is None:
            self._player = self._begin(len(rows))
            self._rows = len(rows)
        if len(rows) != self._rows:
            raise ValueError(
                f"{len(rows)} observations, but there were {self._rows} before: call "
                "reset() where the number changes"
            )
        actions = self._player(rows[None], np.ones((1, len(rows)), bool))[0]
        return actions if np.ndim(flat) > 1 else actions[0]

    def _begin(self, rows: int) -> Player:
        if self.acting is None:
            system = type(self.config.agent).__module__.rpartition(".")[2]
            raise ValueError(f"{system} does not act: it has no policy")
        mesh = distributed.member_mesh(1, jax.local_devices()[:1])
        episodes = range(self._episode, self._episode + rows)
        player = Player(self.acting, [self.seed], episodes, mesh)
        player.start(jax.tree.map(lambda leaf: leaf[None], self.learned))
        return player

    def metrics(self) -> list[Row]:
        """The rows of metrics.jsonl of this seed, oldest first."""
        return self._rows_of("metrics.jsonl")

    def evaluations(self) -> list[Row]:
        """The rows of evaluations.jsonl of this seed, oldest first."""
        return self._rows_of("evaluations.jsonl")

    def _rows_of(self, name: str) -> list[Row]:
        return [r for r in read_rows(self._folder / name) if r["seed"] == self.seed]


def _goal_keys(observation: Any) -> tuple[str, ...]:
    """The vectors of a dictionary; none of an array."""
    if not isinstance(observation, Mapping):
        return ()
    vectors = [
        key
        for key in observations.GOAL_KEYS
        if key in observation and not isinstance(observation[key], Mapping)
    ]
    return tuple(vectors)


def load(
    folder: str | PathLike[str],
    step: str | int = "last",
    seed: int | None = None,
    **settings: Any,
) -> Trained:
    """Loads one member of a run, to act with or to look into.

    Args:
      folder: a run folder.
      step: "last", "best" (its own best evaluation) or the number of a kept checkpoint.
      seed: which member; the first of the run by default.
      **settings: of acting, in the place of those it was trained with, such as
        `sampler="ddim"` or `candidates=1`; see `acting_settings.change`.

    Raises:
      FileNotFoundError: the run has no checkpoint.
      ValueError: it is no run, or has no such step or seed, or a setting cannot
        change.
    """
    run = open_run(folder, step)
    seeds = [member["seed"] for member in run.members]
    if seed is not None and seed not in seeds:
        raise ValueError(f"{folder} has no seed {seed}: its seeds are {seeds}")
    index = 0 if seed is None else seeds.index(seed)
    learned = restore(run, step, [index])
    learned = jax.tree.map(lambda leaf: leaf[0], learned)
    if settings:
        made, learned = acting_settings.change(run.recipe, learned, settings)
        run = run._replace(recipe=made)
    at = run.saved["best_steps"][index] if step == "best" else run.saved["step"]
    return Trained(run, learned, run.members[index], at)
