"""Decision Diffuser: what comes of the return that is asked for.

One training, and many evaluations of what it learned with other values of
`target_return`.  What is asked for is in the units of the labels that it was trained
on: discounted reward from a state to the episode's end over `returns_scale`, with the
penalty of a true end.  What is reached from an episode's first state is in the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments.launch.overrides import Override
from experiments.launch.resolve import resolve
from experiments.studies.ablations import runs
from experiments.studies.plans import play, plots
from jdql.agents import decision_diffuser
from jdql.collect import collect
from jdql.config import Config
from jdql.data import episodes as labels
from jdql.data import sources
from jdql.data.dataset import Dataset
from jdql.report.plots import save
from jdql.report.statistics import standard_error
from jdql.runtime import evaluate, trained
from jdql.runtime.metrics import read_rows
from jdql.runtime.recipe import Learned

TARGETS = 6  # asked for, evenly
EPISODES = 20  # of each seed and target
FILE = "target_returns.jsonl"


class Point(NamedTuple):
    """What came of one target.

    Attributes:
      target: the return asked for.
      reached: of every episode, in the same units.
      score: of every episode, or its return where the task has no score.
    """

    target: float
    reached: NDArray[np.floating]
    score: NDArray[np.floating]


class Units(NamedTuple):
    """What a return is counted in; see `trajectories.return_labels`."""

    discount: float
    penalty: float
    scale: float


def config_of(
    task: str,
    seeds: Sequence[int],
    folder: Path,
    *,
    full: bool,
    overrides: Sequence[Override] = (),
) -> Config:
    """The run of a task.

    Raises:
      ValueError: there is no such task, or its agent is another one.
    """
    whole = task if ":" in task else f"decision_diffuser:{task}"
    config = resolve(whole if full or ":cpu" in whole else f"{whole}:cpu")
    if not isinstance(config.agent, decision_diffuser.Config):
        raise ValueError(f"--config={task}: the figure is about Decision Diffuser")
    return runs.placed(runs.sized(config, None, seeds, overrides), folder)


def run(
    folder: Path,
    targets: Sequence[float],
    out: Path,
    *,
    log: runs.Log,
) -> list[Path]:
    """Evaluates a trained run at every target, prints the table and draws the figure.

    Args:
      folder: of the run; what has been played is kept in its file `FILE`.
      targets: returns to ask for; none takes `TARGETS` from the least label that the
        run was trained on to the greatest, or to its own `target_return`.
      out: the folder of the figure.
      log: receives the table.

    Returns:
      The files that were written.

    Raises:
      ValueError, OSError: as `experiments.evaluate`.
    """
    config = trained.open_run(folder).config
    if not isinstance(config.agent, decision_diffuser.Config):
        raise ValueError(
            f"{folder} is a run of {config.name}: the figure is about Decision Diffuser"
        )
    data = sources.load(config.data, collect=collect.collect, log=log).dataset
    units, every = labelled(config.agent, data)
    begun = every[starts(data)]
    range_ = np.append(every, config.agent.target_return)
    points = _points(folder, list(targets) or evenly(range_, TARGETS), units, log)
    log("\n" + table(points))
    scored = bool(config.eval.reference) or config.eval.score == "success"
    note = (
        f"{config.name}, {trained.open_run(folder).saved['step']:,} updates, "
        f"{len(points[0].score)} episodes a point. Bars: one standard error. "
        f"Ticks: the data's {len(begun):,} episodes."
    )
    unit = "normalised score" if scored else "return"
    return save(plots.returns(points, begun, unit, note), out / "returns")


# Units --------------------------------------------------------------------------------


def labelled(
    agent: decision_diffuser.Config, data: Dataset
) -> tuple[Units, NDArray[np.floating]]:
    """The units of a run's labels, and the labels: what follows every state, [N].

    Without a scale the data's greatest return is 1.
    """
    discount, penalty = float(agent.discount), float(agent.termination_penalty)
    every = labels.returns_to_go(data, discount, penalty=penalty)
    scale = every.max() if agent.returns_scale is None else agent.returns_scale
    return Units(discount, penalty, float(scale)), every / float(scale)


def starts(data: Dataset) -> NDArray[np.integer]:
    """The first transition of each episode, [E]."""
    return np.concatenate([[0], np.asarray(data.episode_ends)[:-1]])


def reached(episode: play.Episode, units: Units) -> float:
    """What an episode's first state was followed by, in these units."""
    powers = units.discount ** np.arange(len(episode.reward))
    end = units.penalty * powers[-1] * episode.terminated
    return float(episode.reward @ powers + end) / units.scale


def evenly(returns: NDArray[np.floating], count: int) -> list[float]:
    """Targets of two digits from the least of some returns to the greatest."""
    chosen = np.linspace(np.min(returns), np.max(returns), count)
    return sorted({round(float(value), 2) for value in chosen})


# Evaluations --------------------------------------------------------------------------


def _points(
    folder: Path, targets: Sequence[float], units: Units, log: runs.Log
) -> list[Point]:
    """Each target's episodes of all seeds; those on record are not played again."""
    plays: dict[int, Callable[[float], Point]] = {}

    def of(target: float) -> Point:
        rows = []
        for member in run.members:
            known = {"step": step, "seed": member["seed"], "target": target}
            row = _recorded(folder, {**known, "episodes": episodes})
            if row is None:
                seed = member["seed"]
                plays.setdefault(seed, _player(folder, seed, episodes, units))
                point = plays[seed](target)
                row = {**known, "episodes": episodes, **_listed(point)}
                with (folder / FILE).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                log(f"asked for {target:g}: reached {point.reached.mean():.3f}")
            rows.append(row)
        both = (
            np.concatenate([row[name] for row in rows]) for name in Point._fields[1:]
        )
        return Point(target, *both)

    run = trained.open_run(folder)
    step, episodes = run.saved["step"], EPISODES
    return [of(target) for target in targets]


def _recorded(folder: Path, known: dict) -> dict | None:
    rows = read_rows(folder / FILE)
    return next((r for r in rows if {**r, **known} == r), None)


def _listed(point: Point) -> dict[str, list[float]]:
    return {"reached": point.reached.tolist(), "score": point.score.tolist()}


def _player(
    folder: Path, seed: int, episodes: int, units: Units
) -> Callable[[float], Point]:
    """`(target) -> point`: all targets have the same program, starts and noise."""
    policy = trained.load(folder, seed=seed)
    play_episodes = play.policy(policy, episodes)

    def of(target: float) -> Point:
        played = play_episodes(asked(policy.learned, target))
        values = np.array([reached(episode, units) for episode in played])
        return Point(target, values, scores(played, policy.config))

    return of


def asked(learned: Learned, target: float) -> Learned:
    """The same parameters, and another return to ask for."""
    settings = {**learned.settings, "target_return": jnp.float32(target)}
    return learned._replace(settings=settings)


def scores(played: Sequence[play.Episode], config: Config) -> NDArray[np.floating]:
    """What each episode scores, or its return where the task has no score."""
    rewards = [episode.reward for episode in played]
    result = evaluate.Evaluation(
        np.array([[np.sum(reward) for reward in rewards]]),
        np.array([[len(reward) for reward in rewards]]),
        np.array([[np.max(reward) for reward in rewards]]),
        np.array([[float(episode.success) for episode in played]]),
    )
    found = evaluate.scores(result, config.eval)
    return (result.returns if found is None else found)[0]


def table(points: Sequence[Point]) -> str:
    """What was asked for and what came of it, a line each."""
    lines = [f"{'asked for':>10}{'reached':>10}{'+-':>8}{'score':>10}{'+-':>8}"]
    for target, values, score in points:
        cells = f"{np.mean(values):10.3f}{standard_error(values):8.3f}"
        lines.append(
            f"{target:10g}{cells}{np.mean(score):10.1f}{standard_error(score):8.1f}"
        )
    return "\n".join(lines)
