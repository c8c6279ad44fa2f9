"""Making the Gymnasium environment of a run."""

from __future__ import annotations

import contextlib
import difflib
import importlib
from collections.abc import Iterator
from typing import Any

from jdql.config import EvalConfig


def make(config: EvalConfig) -> Any:
    """Makes one environment; it does not reset itself at the end of an episode.

    Args:
      config: `env_module` is imported first, where it is given; `env` and `env_kwargs`
        go to `gymnasium.make`.

    Raises:
      ValueError: the environment is unknown (the message names the nearest one), needs
        a package that is not installed, or does not accept its arguments.
    """
    import gymnasium

    with _one_line(config):
        if config.env_module:
            importlib.import_module(config.env_module)
        # Gymnasium's checker only warns, and costs a reset and a step of every row.
        return gymnasium.make(config.env, disable_env_checker=True, **config.env_kwargs)


@contextlib.contextmanager
def _one_line(config: EvalConfig) -> Iterator[None]:
    """Turns what can go wrong in making an environment into one line of advice."""
    import gymnasium

    name = config.env
    try:
        yield
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise ValueError(
            f"environment {name} needs a package that is not installed "
            f"({_first_line(error)}): {_how_to_install(error)}"
        ) from error
    except gymnasium.error.UnregisteredEnv as error:
        near = difflib.get_close_matches(name, gymnasium.registry, n=1, cutoff=0.3)
        hint = f": did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"no environment is called {name!r}{hint} (eval.env_module names the "
            "module that registers it)"
        ) from error
    except (gymnasium.error.Error, TypeError, OSError, AssertionError) as error:
        raise ValueError(
            f"environment {name} cannot be made with {config.env_kwargs}: "
            f"{_first_line(error)}"
        ) from error


def _how_to_install(error: BaseException) -> str:
    if getattr(error, "name", None) == "gym_pusht":
        return "pip install 'jdql[pusht]'"
    return (
        "pip install 'jdql[robotics]' brings the mazes, hands and kitchens; other "
        "environments come with their own package"
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
