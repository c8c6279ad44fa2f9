"""Names, variants and agents; the presets against the authors' table."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from experiments.launch import resolve as configs
from experiments.launch.overrides import Override, split_overrides
from experiments.launch.resolve import config_names, resolve
from jdql.agents import diffusion_bc, diffusion_ql

# The authors' main.py: actor learning rate, eta, max-Q backup, reward, epochs, gradient
# norm; and the episodes of their evaluation.
TABLE = {
    "halfcheetah_medium": (3e-4, 1.0, False, "none", 2000, 9, 10),
    "hopper_medium": (3e-4, 1.0, False, "none", 2000, 9, 10),
    "walker2d_medium": (3e-4, 1.0, False, "none", 2000, 1, 10),
    "halfcheetah_medium_replay": (3e-4, 1.0, False, "none", 2000, 2, 10),
    "hopper_medium_replay": (3e-4, 1.0, False, "none", 2000, 4, 10),
    "walker2d_medium_replay": (3e-4, 1.0, False, "none", 2000, 4, 10),
    "halfcheetah_medium_expert": (3e-4, 1.0, False, "none", 2000, 7, 10),
    "hopper_medium_expert": (3e-4, 1.0, False, "none", 2000, 5, 10),
    "walker2d_medium_expert": (3e-4, 1.0, False, "none", 2000, 5, 10),
    "antmaze_umaze": (3e-4, 0.5, False, "antmaze", 1000, 2, 100),
    "antmaze_umaze_diverse": (3e-4, 2.0, True, "antmaze", 1000, 3, 100),
    "antmaze_medium_play": (1e-3, 2.0, True, "antmaze", 1000, 2, 100),
    "antmaze_medium_diverse": (3e-4, 3.0, True, "antmaze", 1000, 1, 100),
    "antmaze_large_play": (3e-4, 4.5, True, "antmaze", 1000, 10, 100),
    "antmaze_large_diverse": (3e-4, 3.5, True, "antmaze", 1000, 7, 100),
    "pen_human": (3e-5, 0.15, False, "normalize", 1000, 7, 100),
    "pen_cloned": (3e-5, 0.1, False, "normalize", 1000, 8, 100),
    "kitchen_complete": (3e-4, 0.005, False, "none", 250, 9, 100),
    "kitchen_partial": (3e-4, 0.005, False, "none", 1000, 10, 100),
    "kitchen_mixed": (3e-4, 0.005, False, "none", 1000, 10, 100),
}
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
DATASETS = {
    "walker2d_medium": ("mujoco/walker2d/medium-v0",),
    "hopper_medium_replay": ("mujoco/hopper/medium-replay-v0",),
    "halfcheetah_medium_expert": (
        "mujoco/halfcheetah/medium-v0",
        "mujoco/halfcheetah/expert-v0",
    ),
    "antmaze_large_diverse": ("D4RL/antmaze/large-diverse-v1",),
    "antmaze_umaze": ("D4RL/antmaze/umaze-v1",),
    "pen_human": ("D4RL/pen/human-v2",),
    "kitchen_mixed": ("D4RL/kitchen/mixed-v2",),
    "bandit": ("jdql.envs.bandit:dataset",),
}


def test_there_is_a_config_for_every_row_and_the_bandit():
    assert {*TABLE, "bandit"} <= set(config_names())


@pytest.mark.parametrize("name", TABLE)
def test_presets_are_the_authors(name):
    config = resolve(name)
    agent = config.agent
    assert isinstance(agent, diffusion_ql.Config)
    found = (
        agent.lr,
        agent.eta,
        agent.max_q_backup,
        config.data.reward,
        config.train.steps / 1000,
        agent.grad_norm,
        config.eval.episodes,
    )
    assert found == TABLE[name]
    assert {field: getattr(agent, field) for field in SHARED} == SHARED
    assert config.eval.every == 50_000
    assert config.name == name


@pytest.mark.parametrize("name", DATASETS)
def test_datasets(name):
    assert resolve(name).data.dataset == DATASETS[name]


def test_the_bandit_is_the_authors():
    config = resolve("bandit")
    agent = config.agent
    assert (agent.lr, agent.eta, agent.grad_norm) == (3e-4, 2.5, None)
    assert (agent.diffusion_steps, agent.step_dim, agent.batch_size) == (50, 4, 100)
    assert agent.hidden == (128, 128, 128)
    assert config.train.steps == 100_000


@pytest.mark.parametrize("name", sorted([*TABLE, "bandit"]))
def test_headers_say_command_data_score_and_time(name):
    text = (configs.CONFIGS / f"{name}.py").read_text().split('"""')[1]
    assert f"python -m experiments.run --config={name}\n" in text
    for label in ("Dataset: ", "Expect: ", "Time: "):
        assert text.count(f"\n{label}") == 1
    if name != "bandit":
        assert " ".join(text.split()).count("not comparable") == 1


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_mazes_are_closed_and_their_goal_can_be_reached(maze):
    name = maze if maze == "umaze" else f"{maze}_play"
    rows = resolve(f"antmaze_{name}").eval.env_kwargs["maze_map"]
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


def test_quick_changes_the_schedule_alone():
    config, full = resolve("hopper_medium:quick"), resolve("hopper_medium")
    assert config.agent == full.agent
    assert config.data == full.data
    assert config.seeds == 4
    assert config.train.steps < full.train.steps
    assert config.name == "hopper_medium-quick"


def test_agents_are_exchanged_before_the_variant():
    _, overrides = split_overrides(
        ["--config.agent.lr=1e-5", "--config.agent=diffusion_bc"]
    )
    config = resolve("hopper_medium:smoke", overrides)
    assert isinstance(config.agent, diffusion_bc.Config)
    assert config.agent.hidden == (16, 16)
    assert config.agent.lr == 1e-5
    assert config.name == "hopper_medium-diffusion_bc-smoke"


@pytest.mark.parametrize("name", ["diffusion_ql", "jdql.agents.diffusion_ql"])
def test_naming_the_agent_that_is_there_keeps_its_settings(name):
    task = resolve("safety_halfcheetah")
    assert task.agent != diffusion_ql.Config()
    assert resolve("safety_halfcheetah", [Override("agent", name)]) == task


def test_a_module_anywhere_may_be_the_agent():
    swap = Override("agent", "jdql.agents.diffusion_bc")
    assert isinstance(resolve("bandit", [swap]).agent, diffusion_bc.Config)


OWN = """
import dataclasses
from experiments.configs import walker2d_medium

def get_config():
    return dataclasses.replace(walker2d_medium.get_config(), name="mine", seed=7)

def quick(config):
    return dataclasses.replace(config, seeds=1)
"""


def test_a_file_of_ones_own_and_its_variants(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    assert resolve(str(path)).seed == 7
    assert resolve(f"{path}:quick").train.steps == 2_000_000  # the file's own wins
    assert resolve(f"{path}:quick").seeds == 1
    assert resolve(f"{path}:smoke").train.steps == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("walker2_medium", "'walker2d_medium'"),
        ("common", "no config 'common'"),
        ("walker2d_medium:quik", "'quick'"),
        ("walker2d_medium:get_config", "no variant"),
        ("nothing.py", "no such file"),
        ("runs/nothing", "config.json is missing"),
    ],
)
def test_a_wrong_name_is_one_line(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("agent", ["diffusion_cb", "base", "", "no.such.module"])
def test_a_wrong_agent_is_one_line(agent):
    with pytest.raises(ValueError, match="agent") as caught:
        resolve("bandit", [Override("agent", agent)])
    assert "\n" not in str(caught.value)


def test_a_file_without_get_config(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="get_config"):
        resolve("empty.py")


def test_every_field_of_every_config_has_a_readable_type():
    """No field that the command line cannot set, except tables of arguments."""
    config = resolve("walker2d_medium")
    for name, value in dataclasses.asdict(config.agent).items():
        text = "none" if value is None else str(value)
        new = resolve("walker2d_medium", [Override(f"agent.{name}", text)])
        assert new == config


LIGHT = """
import sys
from experiments import {module}
assert {module}.main({arguments}) == {status}
heavy = {{"jax", "numpy", "gymnasium", "orbax", "flax"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("module", "arguments", "status"),
    [
        ("run", ["--help"], 0),
        ("evaluate", ["--help"], 0),
        ("run", ["--config=walker2_medium"], 1),
        ("run", ["--config=runs/none"], 1),
        ("run", [], 1),
        ("evaluate", ["--run=none"], 1),
    ],
)
def test_help_and_misspelt_names_import_no_jax(module, arguments, status):
    code = LIGHT.format(module=module, arguments=arguments, status=status)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_system_takes_the_task_of_another_config():
    config, task = resolve("edp:hopper_medium"), resolve("hopper_medium")
    assert config.name == "edp-hopper_medium"
    assert (config.data, config.eval.env) == (task.data, task.eval.env)
    assert type(config.agent).__module__ == "jdql.agents.edp"
    assert config.agent.grad_norm == task.agent.grad_norm
    with pytest.raises(
        ValueError, match="no settings for kitchen_mixed, only for loco"
    ):
        resolve("fql:kitchen_mixed")
    with pytest.raises(ValueError, match="the nearest is 'hopper_medium'"):
        resolve("edp:hoper_medium")
    with pytest.raises(ValueError, match="there is no variant 'hopper_medium'"):
        resolve("walker2d_medium:hopper_medium")
