"""Decision Diffuser (Ajay et al. 2023): plans of states for the return asked for.

    python -m experiments.run --config=decision_diffuser:hopper_medium_expert
    python -m experiments.run --config=decision_diffuser:pointmaze_umaze:cpu
    python -m experiments.run --config=decision_diffuser:hopper_medium \
        --sweep=agent.target_return=0.2,0.4,0.6,0.8,1.0
    python -m experiments.run --config=decision_diffuser:hopper_medium:ddim
    python -m experiments.run --config=decision_diffuser:hopper_medium:dit

Dataset: the task's, see `--list --config=TASK`.
Expect: the paper's scores on D4RL are 49.1, 79.3 and 82.5 on medium, 39.3, 100 and 75
  on medium-replay, 90.6, 111.8 and 108.8 on medium-expert data of HalfCheetah, Hopper
  and Walker2d.  Data and simulator here are others: not comparable.
Time: 1,000,000 updates of the authors' sizes are for an accelerator, and so is a
  decision of 200 steps; `ddim` takes 20, `cpu` has sizes for two cores.

Observations and actions are scaled by their distribution functions.  Returns of Hopper
are divided by 400 as by the authors, whose program has no other number.  On other tasks
a return of 1 is the greatest of the data, so that the same 0.9 is asked for everywhere.
In the mazes a reward is for being at the goal, and nothing ends an episode early.

The authors have locomotion alone.  The bandit's episodes have one step, behind
which all is padding: states that tell nothing of the action.
"""

from __future__ import annotations

import dataclasses

from experiments.launch.task import Task, by_family, for_two_cores, run
from jdql.agents import decision_diffuser
from jdql.config import Config


def settings(task: Task) -> Config:
    """The authors' settings for locomotion, returns on the scale of the data."""
    return by_family(
        task,
        locomotion=_locomotion,
        bandit=lambda task: _run(
            task, decision_diffuser.Config(horizon=8, returns_scale=None), "identity"
        ),
        otherwise=lambda task: _run(task, decision_diffuser.Config(returns_scale=None)),
    )


def _locomotion(task: Task) -> Config:
    agent = decision_diffuser.Config()
    if not task.name.startswith("hopper"):
        agent = dataclasses.replace(agent, returns_scale=None)
    return _run(task, agent, epochs=1_000)


def _run(
    task: Task,
    agent: decision_diffuser.Config,
    scaling: str = "cdf",
    epochs: int | None = None,
) -> Config:
    """On the task's rewards as they are."""
    return run(task, agent, reward="none", epochs=epochs, scaling=scaling)


def ddim(config: Config) -> Config:
    """Acts by 20 steps of DDIM: a tenth of the time of a decision."""
    agent = dataclasses.replace(config.agent, sampler="ddim", sample_steps=20)
    return dataclasses.replace(config, agent=agent)


def dit(config: Config) -> Config:
    """The transformer in the place of the U-Net, of CleanDiffuser's sizes."""
    agent = dataclasses.replace(config.agent, network="dit")
    return dataclasses.replace(config, agent=agent)


def cpu(config: Config) -> Config:
    """Sizes for two CPU cores: plans of 32 states by a narrow network and ten steps.

    Four steps of a plan are carried out before the next.
    """
    agent = dataclasses.replace(
        config.agent,
        horizon=min(config.agent.horizon, 32),
        dim=32,
        dim_mults=(1, 2, 4),
        heads=4,
        width=128,
        diffusion_steps=50,
        sampler="ddim",
        sample_steps=10,
        execute=4,
        batch_size=32,
        lr=1e-3,
        ema_start=1_000,
    )
    return for_two_cores(config, agent, every=10_000, episodes=5)
