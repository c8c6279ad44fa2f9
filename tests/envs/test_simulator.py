"""Making environments, and what is said when that fails."""

from __future__ import annotations

import sys

import pytest

from jdql.config import EvalConfig
from jdql.envs import simulator


def test_arguments_reach_the_environment():
    environment = simulator.make(
        EvalConfig(env="Hopper-v5", env_kwargs={"max_episode_steps": 7})
    )
    assert environment.spec.max_episode_steps == 7


def test_the_module_is_imported_first(tmp_path, monkeypatch):
    (tmp_path / "own_environments.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('own/Swing-v0', PendulumEnv)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_environments", raising=False)
    config = EvalConfig(env="own/Swing-v0", env_module="own_environments")
    assert simulator.make(config).spec.id == "own/Swing-v0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "Hoper-v5"}, r"did you mean Hopper-v5\?"),
        ({"env": "Hopper-v99"}, "no environment is called 'Hopper-v99'"),
        ({"env": "nowhere/Thing-v0"}, "no environment is called"),
        ({"env": "Hopper-v3"}, "needs a package that is not installed"),
        ({"env_module": "no_such_module"}, "needs a package that is not installed"),
        ({"env_kwargs": {"colour": 1}}, "cannot be made with {'colour': 1}"),
    ],
)
def test_mistakes_get_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        simulator.make(EvalConfig(**({"env": "Hopper-v5"} | changes)))
    assert "\n" not in str(error.value)
