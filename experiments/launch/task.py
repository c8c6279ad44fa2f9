"""What a task is, and the run of an agent on one.

The tasks themselves are the rows of experiments/configs/tasks.py.  Nothing here imports
JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jdql.config import Config, DataConfig, EvalConfig, TrainConfig

EPOCH = 1_000  # updates; the authors of Diffusion-QL, and of the others, count in these


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A dataset, a simulator, and the numbers of Diffusion-QL's authors for them.

    Table 3 is that of the Diffusion-QL paper, main.py the authors' program.

    Attributes:
      name: what `--config` takes.
      title: what it is, in a few words.
      family: locomotion, antmaze, pointmaze, pen, kitchen, bandit, safety, pusht or
        two_route; most systems have settings for a family rather than for a task.
      datasets: as `DataConfig.dataset`.
      data: what is to be known about the data and the simulator.
      stand_in: noise or random play that takes the data's place in the smoke variant,
        as `package.module:function`; "" where jdql makes or collects the data itself.
      scale_observations: the map of `data.scale_observations`.
      scale_actions: the map of `data.scale_actions`.
      env: Gymnasium id of the simulator.
      env_module: imported first, where it registers the simulator.
      env_kwargs: arguments of the simulator.
      horizon: steps of the longest episode in the simulator.
      reference: key of the returns in jdql/references.py that score 0 and 100.
      score: which quantity of an episode is its score, as `EvalConfig.score`.
      seed: of the first episode in the simulator, as `EvalConfig.seed`.
      eta: weight of the Q term (table 3, main.py).
      lr: learning rate of the actor (table 3, main.py).
      grad_norm: bound of the gradient norm (main.py); None clips nothing.
      max_q_backup: whether targets take the best of ten actions (table 3, main.py).
      reward: transform of the rewards (main.py), as `DataConfig.reward`.
      epochs: length of training, in `EPOCH`s (main.py).
      every: epochs between evaluations (main.py).
      episodes: of an evaluation, for each seed (main.py: 10 where the dataset's name
        has a v2, else 100).
      top_k: rank of offline selection (main.py), as `EvalConfig.top_k`.
      expect: Diffusion-QL's score.
      source: whose number that is, and whether a run here may be compared with it.
      time: what a run of Diffusion-QL takes.
    """

    name: str
    title: str
    family: str
    # data
    datasets: tuple[str, ...]
    data: str
    stand_in: str = ""
    scale_observations: str = "identity"
    scale_actions: str = "identity"
    # simulator
    env: str
    env_module: str = ""
    env_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    horizon: int
    reference: str
    score: str = "return"
    seed: int = EvalConfig.seed
    # the authors' numbers
    eta: float
    lr: float = 3e-4
    grad_norm: float | None
    max_q_backup: bool = False
    reward: str = "none"
    epochs: int
    every: int = 50
    episodes: int
    top_k: int
    # in words
    expect: str
    source: str
    time: str


def run(
    task: Task,
    agent: Any,
    *,
    reward: str | None = None,
    epochs: int | None = None,
    every: int | None = None,
    episodes: int | None = None,
    scaling: str | None = None,
) -> Config:
    """The run of an agent on a task; what is None is as in the task's row.

    Args:
      task: its data and simulator are taken.
      agent: settings, an instance of an agent's `Config`.
      reward: transform of the rewards.
      epochs: length of training, in `EPOCH`s.
      every: epochs between evaluations.
      episodes: of an evaluation, for each seed.
      scaling: the map of observations and of actions.

    Returns:
      A config with the task's name.
    """

    def chosen(own: Any, mine: Any) -> Any:
        return mine if own is None else own

    return Config(
        name=task.name,
        agent=agent,
        data=DataConfig(
            dataset=task.datasets,
            reward=chosen(reward, task.reward),
            scale_observations=chosen(scaling, task.scale_observations),
            scale_actions=chosen(scaling, task.scale_actions),
        ),
        train=TrainConfig(steps=chosen(epochs, task.epochs) * EPOCH),
        eval=EvalConfig(
            env=task.env,
            env_module=task.env_module,
            env_kwargs=dict(task.env_kwargs),
            every=chosen(every, task.every) * EPOCH,
            episodes=chosen(episodes, task.episodes),
            top_k=task.top_k,
            reference=task.reference,
            score=task.score,
            seed=task.seed,
        ),
    )


def for_two_cores(config: Config, agent: Any, **evaluation: Any) -> Config:
    """A planner's run at a size for CPUs: 20,000 updates of one seed.

    Args:
      config: of the authors' size.
      agent: settings that take the place of its own.
      **evaluation: fields of `EvalConfig`.
    """
    return dataclasses.replace(
        config,
        agent=agent,
        train=dataclasses.replace(config.train, steps=20_000, log_every=500, call=50),
        eval=dataclasses.replace(config.eval, **evaluation),
        seeds=1,
    )


def by_family(
    task: Task,
    otherwise: Callable[[Task], Config] | None = None,
    **families: Callable[[Task], Config],
) -> Config:
    """A system's run on a task, by the settings for the task's family.

    Args:
      task: of any family.
      otherwise: the settings for the families that are not named; None refuses them.
      **families: the settings for a family each.

    Raises:
      ValueError: the system has no settings for the task's family.
    """
    settings = families.get(task.family, otherwise)
    if settings is None:
        raise ValueError(
            f"there are no settings for {task.name}, only for {', '.join(families)}: "
            f"--config={task.name} --config.agent=NAME takes an agent's own"
        )
    return settings(task)
