"""The systems whose acting is measured, with their cheaper ways of acting.

Networks are as they are before training, on data that are noise: neither changes what a
plan takes.  A new system is one line of `CASES`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.configs import tasks
from experiments.launch import names
from experiments.launch.resolve import resolve
from jdql.config import Config, DataConfig

Way = Mapping[str, Any]  # settings of acting by name, as `acting_settings.change` takes


class Case(NamedTuple):
    """A system on a task.

    Attributes:
      config: SYSTEM:TASK[:VARIANT], as `--config` takes it, without a size.
      ways: of acting, each what differs from the config.
      branches: evaluations of the network that a step takes for one trajectory.
      settings: of the system, in the place of the config's.
    """

    config: str
    ways: tuple[Way, ...] = ({},)
    branches: int = 1
    settings: Mapping[str, Any] = {}


def _way(sampler: str, steps: int | None = None, **others: Any) -> Way:
    return {"sampler": sampler, "sample_steps": steps, **others}


_CHUNKS = (_way("ancestral"), _way("ddim", 10), _way("ddim", 5), _way("dpmpp_2m", 5))
_GUIDED: tuple[Way, ...] = ({}, {"candidates": 4}, {"given.planner.sample_steps": 10})
CASES = (
    Case("diffusion_policy:pusht", _CHUNKS),
    Case("diffusion_policy:pusht:transformer", _CHUNKS),
    Case("diffuser:hopper_medium", ({}, _way("ddim", 5), {"warm_start": 4})),
    Case(
        "diffuser:pointmaze_umaze",
        (
            {},  # one plan for an episode
            _way("ddim", 8),
            {"execute": 10},
            {"execute": 10, "warm_start": 8},
            _way("ddim", 8, execute=10),
            _way("ddim", 8, execute=10, warm_start=8),
        ),
    ),
    Case("diffuser_guided:hopper_medium", _GUIDED),
    Case(
        "decision_diffuser:hopper_medium",
        (_way("ancestral"), _way("ddim", 20), _way("ddim", 10), _way("dpmpp_2m", 10)),
        branches=2,  # with the return and without
    ),
    Case(
        "diffusion_veteran:pointmaze_umaze",
        ({}, _way("ddim", 5), {"candidates": 8}, {"execute": 15}),
    ),
)


def chosen(agents: Sequence[str], steps: Sequence[int]) -> list[Case]:
    """The cases of some systems, or all of them.

    Args:
      agents: names of systems; one that has no case acts as its config has it, on
        Hopper.
      steps: of Diffusion-QL's chains.

    Raises:
      ValueError: there is no such system.
    """
    first = "diffusion_ql:walker2d_medium"
    chains = [Case(first, settings={"diffusion_steps": number}) for number in steps]
    cases = [*chains, *CASES]
    if not agents:
        return cases
    found = []
    for agent in agents:
        mine = [case for case in cases if _system(case) == agent]
        found += mine or [Case(f"{agent}:hopper_medium")]
    for case in found:
        names.split(case.config)  # refuses what it does not know
    return found


def _system(case: Case) -> str:
    return case.config.partition(":")[0]


class Policy(NamedTuple):
    """A policy that can be timed.

    Attributes:
      recipe: how its system is made.
      acting: on the environment's scale.
      learned: by one member, stacked ([1, ...]).
    """

    recipe: Any
    acting: Any
    learned: Any


def make(case: Case, size: str) -> dict[str, Policy]:
    """The policies of a case, by the settings that they differ in.

    Args:
      case: of `CASES`.
      size: "authors", or "cpu" for the sizes of a system's variant of that name, where
        it has one.

    Raises:
      ValueError: a setting is out of range.
    """
    import jax

    from jdql.runtime import acting_settings, members
    from jdql.runtime import recipe as recipes

    made: dict[str, Policy] = {}
    system = _recipe(case.config, size)
    config = dataclasses.replace(system.config, **case.settings)
    system = system._replace(config=config)
    start = jax.jit(
        functools.partial(recipes.untrained, system), compiler_options=members.ONCE
    )
    learned = jax.tree.map(lambda leaf: leaf[None], start(jax.random.key(0)))
    for way in case.ways:
        mine, known = acting_settings.change(system, learned, way)
        made[str(dict(way))] = Policy(mine, recipes.acting(mine), known)
    return made


def _recipe(config: str, size: str) -> Any:
    """How a system is made, with the earlier runs that it builds on."""
    from jdql.agents import base
    from jdql.data import sources
    from jdql.runtime.recipe import Recipe

    words = names.split(config)
    files = names.variant_files(words.system, words.task)
    sized = size == "cpu" and any("cpu" in names.variants(file) for file in files)
    run = resolve(f"{config}:cpu" if sized else config)
    source = sources.load(_stand_in(run), log=lambda line: None)
    earlier = base.required(run.agent)
    given = {name: _recipe(f"{config}:{name}", size) for name in earlier}
    maker = base.maker(run.agent)
    return Recipe(maker, run.agent, source.agent_spec, source.scaling, given)


def _stand_in(run: Config) -> DataConfig:
    """Noise of the sizes of a run's data, scaled as they are; or data made at once."""
    task, dataset = tasks.of(run), run.data.dataset[0]
    body = run.eval.env.partition("-")[0].lower()
    made = dataset if ":" in dataset else f"jdql.envs.synthetic:{body}"
    entry = (task and task.stand_in) or made
    return dataclasses.replace(
        run.data, dataset=(entry,), source="local", reward="none"
    )


class Chain(NamedTuple):
    """How a system samples: in words, and the calls of its network."""

    sampler: str
    calls: int


def chain(system: Any) -> Chain | None:
    """The chain of a system, or of the planner that it builds on; None without one."""
    config = system.config
    if not hasattr(config, "sampler"):
        found = (chain(earlier) for earlier in system.given.values())
        return next((one for one in found if one is not None), None)
    steps, level = config.sample_steps, getattr(config, "warm_start", None)
    calls = config.diffusion_steps if steps is None else steps
    if level is None:
        return Chain(config.sampler, _calls(config.sampler, calls))
    # A warm start goes through the share of the steps below its level.
    share = (level + 1) / config.diffusion_steps
    rest = level + 1 if steps is None else max(1, round(steps * share))
    return Chain(f"{config.sampler}, warm", _calls(config.sampler, rest))


def _calls(sampler: str, steps: int) -> int:
    """Heun's method calls the network twice a step, but for the last."""
    return 2 * steps - 1 if sampler == "edm_heun" else steps
