"""Evaluation of all members of a run, each by its own settings, in its own process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.sharding import Mesh

from jdql.agents.base import Maker, Policy
from jdql.config import EvalConfig
from jdql.runtime import members, processes
from jdql.runtime.evaluate import Evaluation, Rollouts
from jdql.runtime.members import Row
from jdql.runtime.stopping import Stopped
from jdql.types import Array, DataSpec

# (policies, hyper, stopping) -> what all members did
Play = Callable[[Policy, dict[str, Array], Callable[[], bool]], Evaluation]


@contextlib.contextmanager
def open_rollouts(
    make: Maker,
    agent_config: Any,
    spec: DataSpec,
    config: EvalConfig,
    rows: Sequence[Row],
    mesh: Mesh,
) -> Iterator[Play]:
    """Opens the environments of this process's members.

    Args:
      make: the maker of agents.
      agent_config: the agent's settings; swept ones are replaced by each member's.
      spec: of the data that the policies were trained on.
      config: which environment, and how many episodes.
      rows: the S members.
      mesh: what they are sharded over.

    Yields:
      A function of the stacked policies and swept settings, sharded over `mesh`, and
      of a reader of the flag to stop.  In every process it gives the results of all
      members, (S, E), or raises Stopped when any process is to stop.

    Raises:
      ValueError: the environment cannot be made or does not fit; see `Rollouts`.
    """
    agent = members.acting_agent(make, agent_config, spec)
    seeds = [row["seed"] for row in rows[processes.own_members(len(rows))]]
    own_mesh = processes.own_mesh(mesh)
    rollouts = processes.together(
        lambda: Rollouts(agent, seeds, spec, config, mesh=own_mesh)
    )

    def play(
        policies: Policy, hyper: dict[str, Array], stopping: Callable[[], bool]
    ) -> Evaluation:
        def progress(*_: Any) -> None:
            if stopping():
                raise Stopped

        def play_own() -> Evaluation | None:
            try:
                return rollouts(own, progress=progress)
            except Stopped:
                return None

        own = processes.own_part((policies, hyper), mesh)
        result = processes.together(play_own)
        if processes.any_of(result is None):
            raise Stopped
        assert result is not None
        returns, lengths = map(processes.gather, result)
        return Evaluation(returns, lengths)

    with rollouts:
        yield play
