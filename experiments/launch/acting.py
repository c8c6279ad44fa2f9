"""`--config.agent.FIELD=VALUE` on a trained run: other settings of acting."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from experiments.launch import overrides as overrides_lib
from experiments.launch.overrides import Override
from jdql.config import Config

AGENT = "agent."


def check(overrides: Iterable[Override]) -> None:
    """Refuses overrides of what a run keeps whatever its system.

    Raises:
      ValueError: one is of neither `agent` nor `given`.
    """
    for override in overrides:
        if not override.path.startswith((AGENT, "given.")):
            raise ValueError(
                f"a run keeps its settings: drop --config.{override.path}; what can "
                "change is how it acts, such as --config.agent.sample_steps"
            )


def settings(recipe: Any, overrides: Iterable[Override]) -> dict[str, Any]:
    """What overrides say, read by the types of a run's settings.

    Args:
      recipe: a `jdql.runtime.recipe.Recipe`.
      overrides: `agent.FIELD`, or `given.NAME.FIELD` for a run that it builds on.

    Returns:
      Values by name, as `jdql.runtime.acting_settings.change` takes them.

    Raises:
      ValueError: there is no such setting, or a text does not fit its type.
    """
    from jdql.runtime import acting_settings

    check(overrides)
    found = {}
    for override in overrides:
        path = override.path.removeprefix(AGENT)
        made, field = acting_settings.owner(recipe, path)
        agent = Config(name="", agent=made.config)
        read = overrides_lib.apply(agent, Override(AGENT + field, override.text))
        found[path] = getattr(read.agent, field)
    return found
