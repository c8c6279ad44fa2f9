"""Every setting of a run that is not an agent's own, as frozen dataclasses.

An agent's settings are the `Config` of its file in `jdql/agents`.  This module imports
nothing but the standard library, so that the command line answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any

SWEPT = "agent."  # what can be swept is called agent.FIELD, in records too
# Metadata of a float field of an agent's `Config` whose value is part of the program.
STATIC = {"static": True}
# The settings of acting: how many steps a chain takes and by which rule, what is asked
# of a plan, which of several is taken and how much of it is carried out.  No network
# and no array that is learned depends on a setting of these names, in any system, so a
# trained policy may act with other values of them.
ACTING = frozenset(
    {
        "sampler",
        "sample_steps",
        "variance",
        "flow_steps",
        "unroll",
        "warm_start",
        "guidance",
        "scale",
        "guide_steps",
        "stop",
        "temperature",
        "actor_temperature",
        "target_return",
        "candidates",
        "selection",
        "plan_horizon",
        "shorter",
        "jump",
        "execute",
        "executed",
    }
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where transitions come from and what is done to them before training."""

    # A Minari id ("mujoco/walker2d/medium-v0"), a path ending in .hdf5 or .npz, a
    # dataset of LeRobot's as a folder or "hf://datasets/OWNER/NAME", or
    # "package.module:function" naming a maker of datasets.  Several are concatenated.
    dataset: tuple[str, ...] = ()
    # auto: local Minari copy, else download, else collect with the bundled policy;
    # minari: never collect; local: always the dataset that jdql collects itself.
    source: str = "auto"
    # none | normalize | antmaze | minus_one | minmax | iql_locomotion |
    # package.module:function, `(dataset, training data) -> dataset`
    reward: str = "none"
    # Names of an .npz file's columns, "observations=s,actions=a,rewards=r,terminals=d"
    # and perhaps timeouts and next_observations; "" knows jdql's names and NeoRL-2's.
    columns: str = ""
    # Keeps these episodes, counted over all of the data: "0:14", "14:" or ":-4", as
    # Python slices a list; "" keeps all.
    episodes: str = ""
    # The last episodes, this many of those kept, are not trained on.
    held_out: int = 0
    # identity | gaussian | limits | cdf, fitted on the training data and saved with
    # what is learned: see jdql/data/scaling.py.
    scale_observations: str = "identity"
    scale_actions: str = "identity"
    ignore: tuple[int, ...] = ()  # columns of observations that agents see as 0
    collect_steps: int = 1_000_000  # size of a dataset that jdql collects itself


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The schedule of a run, in gradient steps (updates)."""

    steps: int = 2_000_000
    log_every: int = 1_000  # metrics are means over this many updates
    # Updates in one device call; None: log_every on an accelerator, a tenth on a CPU.
    call: int | None = None
    precision: str = "float32"  # of matrix products: float32 | tf32 | bfloat16


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Rollouts in the simulator."""

    env: str = ""  # Gymnasium id
    env_module: str = ""  # imported first, where it registers the environment
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    every: int = 50_000  # updates between evaluations (the authors': 50 epochs)
    episodes: int = 10  # per seed
    # Which quantity of an episode is scored: the `return`; the `peak`, the highest
    # reward of a step; or `success`, 1 where the simulator says so at any step, else 0.
    score: str = "return"
    seed: int = 100  # offset of the environment seeds (the authors': seed + 100)
    # Offline selection takes the evaluation whose bc_loss is the (top_k + 1)-th lowest;
    # the authors tuned 0, 1 or 2 for each task.
    top_k: int = 1
    # Key of the table in jdql/references.py; "" reports returns only.
    reference: str = ""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where a run lives and who is told about it."""

    dir: str = ""  # "": runs/<config name>, numbered if that is taken
    tensorboard: bool = False
    wandb: bool = False
    compilation_cache: str = "~/.cache/jdql/xla"  # "" turns it off


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: an agent, its data, and how long.

    `agent` is an instance of the `Config` of a module in `jdql.agents`; that module's
    `make` builds the agent.  `given` names the folders of the earlier runs that it
    builds on.  `seeds` consecutive seeds from `seed` on are trained in
    one process; None means 16 on an accelerator and 4 on a CPU.  `sweep` multiplies
    them: its entries are a float setting of the agent, such as "agent.eta", and its
    values, and every combination of values is trained with every seed.
    """

    name: str
    agent: Any
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()
    given: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int = 0
    seeds: int | None = None
    sweep: tuple[tuple[str, tuple[float, ...]], ...] = ()


def _floats(settings: type) -> list[str]:
    """The fields of a dataclass that hold floats, but for those that are static."""
    hints = typing.get_type_hints(settings)
    return [
        field.name
        for field in dataclasses.fields(settings)
        if hints[field.name] in (float, float | None)
        and not field.metadata.get("static")
    ]


def float_settings(agent: Any) -> dict[str, float]:
    """The float settings of an agent that have a value, by field name.

    They reach the compiled programs as numbers, so that another value needs no other
    program; one that is None is part of the program.
    """
    values = {name: getattr(agent, name) for name in _floats(type(agent))}
    return {name: float(value) for name, value in values.items() if value is not None}


def check_sweep(config: Config) -> None:
    """Refuses a sweep of what is no float setting of the agent.

    Raises:
      ValueError: no such setting, one that is no float, a setting named twice, or one
        without values or with equal ones.
    """
    hints = typing.get_type_hints(type(config.agent))
    floats = _floats(type(config.agent))
    known = [SWEPT + name for name in floats]
    names = [name for name, _ in config.sweep]
    for name, values in config.sweep:
        field = name.removeprefix(SWEPT)
        if name.startswith(SWEPT) and field in hints and field not in floats:
            raise ValueError(
                f"{name} cannot be swept: it is no float, so its values need programs "
                f"of their own. Start a run for each: --config.{name}=VALUE"
            )
        if name not in known:
            raise ValueError(
                f"{name} cannot be swept: the float settings of the agent can, and the "
                f"nearest of them is {_nearest(field, floats)}"
            )
        if names.count(name) > 1 or not values or len(set(values)) < len(values):
            raise ValueError(
                f"{name} must be swept once, over different values; got {values}"
            )


def _nearest(field: str, floats: list[str]) -> str:
    last = field.rpartition(".")[2]
    found = difflib.get_close_matches(last, floats, n=1, cutoff=0.0)
    return SWEPT + found[0] if found else "none"
