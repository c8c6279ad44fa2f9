"""Names, variants and agents."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from experiments.configs.tasks import TASKS
from experiments.launch import listing, names
from experiments.launch.overrides import Override, split_overrides
from experiments.launch.resolve import resolve
from jdql.agents import diffusion_bc, diffusion_ql


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
    assert config.agent.hidden == (32, 32)
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
from experiments.configs import diffusion_ql, tasks

def get_config():
    config = diffusion_ql.settings(tasks.TASKS["walker2d_medium"])
    return dataclasses.replace(config, name="mine", seed=7)

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
    both = resolve(f"{path}:smoke:quick")
    assert (both.seeds, both.train.steps, both.name) == (1, 4, "mine-smoke-quick")
    with pytest.raises(ValueError, match=r"'quick' \(there are quick, smoke\)$"):
        resolve(f"{path}:quik")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("walker2_medium", "no system, task or variant .* 'walker2d_medium'"),
        ("walker2d_medium:quik", "'quick'"),
        ("edp:hoper_medium", "'hopper_medium'"),
        ("edpp:hopper_medium", "'edp'"),
        ("fql:chunkd", "'chunked'"),
        ("edp:", "no system, task or variant ''"),
        ("tasks", "no system, task or variant 'tasks'"),
        ("edp:settings", "no system, task or variant 'settings'"),
        ("of", "no system, task or variant 'of'"),
        ("quick", "name a system or a task"),
        ("edp:quick:quick", "'quick' is there twice"),
        ("edp:fql", "edp and fql are more than one system"),
        ("bandit:edp:hopper_medium", "bandit and hopper_medium are more than one task"),
        ("edp:chunked", "'chunked' is a variant of bfn and fql only"),
        ("hopper_medium:held_out", "a variant of safety_halfcheetah only"),
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
        ("run", ["--config=edp:hoper_medium"], 1),
        ("run", ["--config=edp:chunked"], 1),
        ("run", ["--config=runs/none"], 1),
        ("run", ["--list"], 0),
        ("run", ["--list", "--config=edp:hopper_medium"], 0),
        ("run", [], 1),
        ("evaluate", ["--run=none"], 1),
    ],
)
def test_help_and_misspelt_names_import_no_jax(module, arguments, status):
    code = LIGHT.format(module=module, arguments=arguments, status=status)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("name", "label", "agent"),
    [
        ("hopper_medium", "hopper_medium", "diffusion_ql"),
        ("diffusion_ql:hopper_medium", "hopper_medium", "diffusion_ql"),
        ("diffusion_ql", "walker2d_medium", "diffusion_ql"),
        ("walker2d_medium:quick", "walker2d_medium-quick", "diffusion_ql"),
        ("edp", "edp-walker2d_medium", "edp"),
        ("edp:hopper_medium", "edp-hopper_medium", "edp"),
        ("hopper_medium:edp", "edp-hopper_medium", "edp"),
        ("edp:hopper_medium:quick", "edp-hopper_medium-quick", "edp"),
        ("hopper_medium:edp:quick", "edp-hopper_medium-quick", "edp"),
        ("quick:edp:hopper_medium", "edp-hopper_medium-quick", "edp"),
        ("fql:bandit:chunked:smoke", "fql-bandit-chunked-smoke", "fql"),
    ],
)
def test_words_may_stand_in_any_order(name, label, agent):
    config = resolve(name)
    assert config.name == label
    assert type(config.agent).__module__ == f"jdql.agents.{agent}"
    task = next(word for word in (*name.split(":"), "walker2d_medium") if word in TASKS)
    if "smoke" not in name:
        assert config.data.dataset == TASKS[task].datasets


def test_variants_are_applied_in_order():
    # Both set the length of training; the last one has it.
    assert resolve("hopper_medium:quick:smoke").train.steps == 4
    config = resolve("hopper_medium:smoke:quick")
    assert (config.train.steps, config.data.collect_steps) == (4_000, 2_000)


def test_a_word_means_one_thing():
    every = [*names.system_names(), *names.task_names()]
    files = [names.GENERAL, *map(names.own_file, every)]
    variants = {variant for path in files for variant in names.variants(path)}
    assert len({*every, *variants}) == len(every) + len(variants)
    assert {"quick", "smoke", "chunked", "ancestral", "held_out"} <= variants


def test_a_variant_of_a_system_needs_its_agent():
    exchange = [Override("agent", "edp")]
    with pytest.raises(ValueError, match="'chunked' changes settings of fql") as caught:
        resolve("fql:hopper_medium:chunked", exchange)
    assert "\n" not in str(caught.value)
    assert resolve("fql:chunked", [Override("agent", "fql")]).agent.chunk == 5
    assert resolve("fql:hopper_medium:quick", exchange).name == (
        "fql-hopper_medium-edp-quick"
    )


def test_the_reference_can_be_set():
    config = resolve("hopper_medium", [Override("eval.reference", "walker2d")])
    assert config.eval.reference == "walker2d"


# What --list says -------------------------------------------------------------------


def test_the_overview_has_every_task_system_and_variant():
    tasks, systems, variants, _ = listing.overview().split("\n\n")
    first = [line.split()[0] for line in tasks.splitlines()]
    assert first == ["task", *TASKS]
    assert "87.0 +- 0.9" in tasks
    lines = systems.splitlines()
    assert [line.split()[0] for line in lines] == ["system", *names.system_names()]
    assert all(len(line.split()) > 3 and line.endswith(".") for line in lines[1:])
    found = {tuple(line.split()[:2]) for line in variants.splitlines()}
    assert {("smoke", "everything"), ("chunked", "fql")} <= found
    assert ("cautious", "safety_halfcheetah") in found


def test_a_task_and_a_system_in_words():
    text = listing.explain("antmaze_large_play:quick")
    for part in (
        "--config=antmaze_large_play\n",
        "Dataset: D4RL/antmaze/large-play-v1; a download of 605 MB",
        "Simulator: AntMaze_Large-v4, episodes of at most 1000 steps",
        "Expect: 46.4: the paper's table 1",
        "not comparable",
        "about 22 hours",
        "eta 4.5",
        "bound of the gradient norm 10, targets of",
    ):
        assert part in " ".join(text.split()) or part in text
    assert max(map(len, text.splitlines())) <= listing.WIDTH
    both = listing.explain("edp:safety_halfcheetah")
    assert "the 18,000 published" in both
    assert "How the settings are chosen" in both
    assert "Efficient Diffusion Policies" in both
    with pytest.raises(ValueError, match="'hopper_medium'"):
        listing.explain("hoper_medium")


@pytest.mark.parametrize("system", names.system_names())
def test_headers_say_command_data_score_and_time(system):
    text = names.docstring(names.own_file(system))
    assert f"python -m experiments.run --config={system}" in text
    for label in ("Dataset: ", "Expect: ", "Time: "):
        assert text.count(f"\n{label}") == 1
