"""The settings of every system on every task.

recorded.json holds what the launcher gave before the tasks were a table, when each had
a file of its own: a row for each system on each task, with what differs from the
defaults of `Config` and of the agent's settings.  What is not the agent's differs from
the row of diffusion_ql; "default" takes a difference back.  Its last part has what a
variant changes; the sizes of the agents in the smoke variant are left out.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.configs.tasks import TASKS, of
from experiments.launch import names
from experiments.launch.resolve import resolve
from experiments.launch.task import by_family, run
from jdql import references
from jdql.agents import diffusion_ql
from jdql.agents.base import required
from jdql.collect.collect import BEHAVIOURS
from jdql.config import Config, DataConfig
from jdql.data import minari, sources
from jdql.envs import simulator, synthetic

NEW = {"pusht", "two_route", "pointmaze"}  # families since
RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text())
VARIANTS = RECORDED.pop("variants")
SYSTEMS = names.system_names()
GIVEN = {system: required(resolve(system).agent) for system in SYSTEMS}

# Mended since.  EDP's authors train for 2000 epochs and play ten episodes every ten of
# them on every task, and their program has one expectile and one temperature.
EDP = {
    "train.steps": "default",  # 2,000,000
    "eval.every": 10_000,
    "eval.episodes": "default",  # 10
    "agent.expectile": "default",  # 0.7
    "agent.inverse_temperature": "default",  # 3
}
MENDED = {("edp", "antmaze"): EDP, ("edp", "kitchen"): EDP, ("edp", "pen"): EDP}
# QC has alpha 100 and never divides Q by its size.
MENDED_VARIANTS = {
    "fql:chunked": {"agent.alpha": 100.0, "agent.normalize_q_loss": "default"}
}


def differences(config: Config) -> dict[str, Any]:
    """What a config has that is not the default, by dotted name."""
    default = flat(Config(name="", agent=type(config.agent)()))
    return {n: v for n, v in flat(config).items() if v != default[n] and n != "name"}


def flat(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(dataclasses.asdict(config))).items():
        section = isinstance(value, dict)
        found |= (
            {f"{name}.{n}": v for n, v in value.items()} if section else {name: value}
        )
    kwargs = found["eval.env_kwargs"]
    if "maze_map" in kwargs:  # the record has its rows as texts
        kwargs["maze_map"] = ["".join(map(str, row)) for row in kwargs["maze_map"]]
    return found


def stored(task: str, system: str) -> dict[str, Any]:
    """The recorded differences of a system on a task, as mended since."""
    first, own = RECORDED[task]["diffusion_ql"], RECORDED[task][system]
    common = {n: v for n, v in first.items() if not n.startswith("agent.")}
    mended = MENDED.get((system, TASKS[task].family), {})
    return without_defaults({**common, **own, **mended})


def without_defaults(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value != "default"}


@pytest.mark.parametrize("task", RECORDED)
def test_settings_are_those_on_record(task):
    for system in RECORDED[task]:
        found = differences(resolve(f"{system}:{task}"))
        if system == "diffusion_ql":
            assert found == without_defaults(RECORDED[task][system])
        else:
            assert found == stored(task, system), system


def test_every_older_task_is_on_record():
    assert set(RECORDED) == {n for n, t in TASKS.items() if t.family not in NEW}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_change_what_they_did(name):
    sizes = "agent." if name.endswith(":smoke") else "nothing"
    before, after = (
        {n: v for n, v in differences(resolve(x)).items() if not n.startswith(sizes)}
        for x in (name.partition(":")[0], name)
    )
    changed = {**VARIANTS[name], **MENDED_VARIANTS.get(name, {})}
    assert after == without_defaults({**before, **changed})


def test_where_a_system_had_no_settings_the_run_is_the_tasks_own():
    systems = set().union(*RECORDED.values())
    for name in RECORDED:
        plain = resolve(name)
        for system in systems - set(RECORDED[name]):
            config = resolve(f"{system}:{name}")
            assert (config.train, config.eval) == (plain.train, plain.eval)
            # The transform of rewards belongs to a system's critic.
            data = dataclasses.replace(config.data, reward=plain.data.reward)
            assert data == plain.data


def test_cloning_has_the_rate_of_the_task():
    assert resolve("diffusion_bc:pen_human").agent.lr == 3e-5
    assert resolve("diffusion_bc:antmaze_medium_play").agent.lr == 1e-3
    agent = resolve("diffusion_bc:bandit").agent
    assert (agent.diffusion_steps, agent.step_dim, agent.batch_size) == (50, 4, 100)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_variant_of_a_system_takes_every_task(system):
    for name, task in TASKS.items():
        files = names.variant_files(system, name)
        for variant in ("", *(v for path in files for v in names.variants(path))):
            config = resolve(f"{system}:{name}" + (variant and f":{variant}"))
            # A variant may be the earlier run that the system builds on.
            earlier = [kind for kinds in GIVEN[system].values() for kind in kinds]
            module = type(config.agent).__module__.removeprefix("jdql.agents.")
            assert module in (system, *earlier)
            assert variant == "smoke" or of(config) is task


def test_chunks_have_one_alpha_on_every_task():
    for name in TASKS:
        agent = resolve(f"fql:{name}:chunked").agent
        assert (agent.chunk, agent.alpha, agent.normalize_q_loss) == (5, 100.0, False)


def test_eta_is_held_out_where_there_is_one():
    assert resolve("safety_halfcheetah:held_out").sweep
    config = resolve("idql:safety_halfcheetah:held_out")
    assert (config.sweep, config.data.episodes) == ((), "0:14")


# The authors' constants that no task changes: `python main.py` of Diffusion-QL.
SHARED = {
    "critic_lr": 3e-4,
    "batch_size": 256,
    "discount": 0.99,
    "tau": 0.005,
    "ema_decay": 0.995,
    "ema_every": 5,
    "ema_start": 1000,
    "diffusion_steps": 5,
    "schedule": "vp",
    "variance": "posterior",
    "hidden": (256, 256, 256),
    "candidates": 50,
    "temperature": 1.0,
}


def test_the_defaults_of_diffusion_ql_are_its_authors():
    agent = diffusion_ql.Config()
    assert {field: getattr(agent, field) for field in SHARED} == SHARED


# The table --------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_row_is_whole(task):
    assert references.find(task.reference)
    assert task.score in ("return", "peak", "success")
    assert task.horizon >= 1
    limit = task.env_kwargs.get("max_episode_steps", task.horizon)
    assert limit == task.horizon
    assert all((task.title, task.data, task.expect, task.source, task.time))
    # Numbers that a run here may be compared with: of jdql's own tasks, and of PushT.
    own = ("bandit", "safety", "pusht", "two_route", "pointmaze")
    comparable = task.family in own
    assert task.source.endswith("not comparable") is not comparable


def test_datasets_tell_tasks_apart():
    assert len({task.datasets for task in TASKS.values()}) == len(TASKS)
    for name, task in TASKS.items():
        assert of(resolve(f"{name}:quick")) is task
    config = resolve("hopper_medium")
    data = dataclasses.replace(config.data, dataset=("mine.npz",))
    assert of(dataclasses.replace(config, data=data)) is None


def test_a_family_without_settings_is_refused_with_advice():
    def own(task):
        return run(task, diffusion_ql.Config())

    assert by_family(TASKS["pen_human"], pen=own).name == "pen_human"
    assert by_family(TASKS["bandit"], own, pen=own).name == "bandit"
    with pytest.raises(
        ValueError, match=r"no settings for kitchen_mixed, only for pen: .*agent=NAME"
    ) as caught:
        by_family(TASKS["kitchen_mixed"], pen=own)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_jdql_cannot_collect_has_a_stand_in(task):
    wanted = [sources.local_id(d) for d in task.datasets if minari.is_id(d)]
    policies = {f"jdql/{name}-v0" for name in BEHAVIOURS}
    if wanted:
        assert (not task.stand_in) == (set(wanted) <= policies)
    if task.stand_in:
        data = DataConfig(dataset=(task.stand_in,))
        source = sources.load(data, log=lambda line: None)
        sizes = synthetic.SIZES.get(task.stand_in.partition(":")[2])
        spec = source.spec
        assert sizes in (None, (spec.observation_dim, spec.action_dim))


@pytest.mark.parametrize("name", ["hopper_medium", "safety_halfcheetah", "bandit"])
def test_a_horizon_is_the_simulators(name):
    environment = simulator.make(resolve(name).eval)
    environment.reset(seed=0)
    limit = environment.spec.max_episode_steps
    if limit is None:  # the bandit's only step ends its episode
        assert environment.step(environment.action_space.sample())[2]
        limit = 1
    assert limit == TASKS[name].horizon


@pytest.mark.parametrize("maze", ["umaze", "medium_play", "large_play"])
def test_mazes_are_closed_and_their_goal_can_be_reached(maze):
    rows = TASKS[f"antmaze_{maze}"].env_kwargs["maze_map"]
    free = {(i, j) for i, row in enumerate(rows) for j, c in enumerate(row) if c != 1}
    height, width = len(rows), len(rows[0])
    assert all(len(row) == width for row in rows)
    assert all(0 < i < height - 1 and 0 < j < width - 1 for i, j in free)
    start = [cell for cell in free if rows[cell[0]][cell[1]] == "r"]
    goal = [cell for cell in free if rows[cell[0]][cell[1]] == "g"]
    assert len(start) == len(goal) == 1
    reached, edge = set(start), list(start)
    while edge:
        i, j = edge.pop()
        near = {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} & free - reached
        reached |= near
        edge += near
    assert goal[0] in reached
