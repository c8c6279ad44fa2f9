"""Run folders: JSON and back, and who may go on with a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.launch import run_folder
from experiments.launch.names import system_names, task_names
from experiments.launch.overrides import split_overrides
from experiments.launch.resolve import resolve
from jdql.runtime import stored


def store_run(folder: str = "r", name: str = "bandit"):
    config = dataclasses.replace(resolve(name), seeds=2)
    run = dataclasses.replace(config.run, dir=folder)
    config = dataclasses.replace(config, run=run)
    stored.save(config, folder)
    return config


def asked(name: str, *arguments: str):
    return resolve(name, split_overrides(list(arguments))[1])


@pytest.mark.parametrize("name", [*task_names(), *system_names()])
def test_json_round_trip(name):
    config = resolve(name)
    text = json.dumps(stored.to_dict(config))
    assert stored.from_dict(json.loads(text)) == config


def test_a_run_folder_is_a_config():
    config = store_run()
    assert resolve("r") == config
    assert asked("r", "--config.train.steps=7").train.steps == 7
    assert not list(Path("r").glob("*.tmp"))


def test_a_moved_folder_is_itself():
    store_run()
    Path("r").rename("s")
    assert resolve("s").run.dir == "s"


def test_the_agent_is_found_by_its_module():
    config = asked("bandit", "--config.agent=diffusion_bc")
    values = stored.to_dict(config)
    assert values["agent_module"] == "jdql.agents.diffusion_bc"
    assert stored.from_dict(values).agent == config.agent


def test_missing_fields_keep_their_defaults():
    values = stored.to_dict(resolve("bandit"))
    del values["train"]["log_every"]
    assert stored.from_dict(values) == resolve("bandit")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v["train"].update(speed=3), "knows no setting train.speed"),
        (lambda v: v["agent"].update(speed=3), "knows no setting agent.speed"),
        (lambda v: v.pop("agent_module"), "agent_module"),
        (lambda v: v.update(agent_module="jdql.agents.none"), "jdql.agents.none"),
        (lambda v: v.pop("name"), "cannot be read"),
    ],
)
def test_a_spoilt_file_is_one_line(spoil, message):
    values = stored.to_dict(store_run())
    spoil(values)
    Path("r/config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as caught:
        stored.load("r")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_json():
    store_run()
    Path("r/config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        stored.load("r")
    with pytest.raises(ValueError, match="holds no run"):
        stored.load("nowhere")


def test_choosing_a_folder():
    config = store_run()
    assert run_folder.choose(resolve("bandit")) == (None, False)
    new = asked("bandit", "--config.run.dir=new")
    assert run_folder.choose(new) == (Path("new"), False)
    assert run_folder.choose(resolve("r"), "r") == (Path("r"), True)
    # The same command again goes on, whichever way the folder is written.
    assert run_folder.choose(config, "bandit") == (Path("r"), True)
    from_run = asked("r", "--config.run.dir=other", "--config.agent.eta=3")
    assert run_folder.choose(from_run, "r") == (Path("other"), False)


def test_a_resumed_run_may_change_its_schedule():
    store_run()
    for change in ("train.steps=9", "eval.episodes=3", "run.tensorboard=true"):
        config = asked("r", f"--config.{change}")
        assert run_folder.choose(config, "r") == (Path("r"), True)


@pytest.mark.parametrize(
    "change", ["agent.eta=9", "seeds=3", "seed=1", "data.reward=normalize"]
)
def test_a_resumed_run_keeps_what_it_is(change):
    store_run()
    name = change.split("=")[0]
    with pytest.raises(ValueError, match=f"keeps its {name}:"):
        run_folder.choose(asked("r", f"--config.{change}"), "r")


def test_another_command_does_not_take_a_run_over():
    store_run()
    config = asked(
        "bandit", "--config.run.dir=r", "--config.seeds=2", "--config.seed=5"
    )
    with pytest.raises(ValueError, match="resume it with --config=r,"):
        run_folder.choose(config, "bandit")


def test_new_folders_are_numbered():
    names = [run_folder.claim("x") for _ in range(3)]
    assert names == [Path("runs/x"), Path("runs/x-2"), Path("runs/x-3")]
    assert all(folder.is_dir() for folder in names)


def test_starts_are_recorded():
    run_folder.record_start(Path("."))
    run_folder.record_start(Path("."))
    rows = [json.loads(line) for line in Path("starts.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert rows[0]["versions"]["jax"][0].isdigit()
