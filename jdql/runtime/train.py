"""The run loop: updates, evaluations, checkpoints, and stopping on a signal.

When what happens depends on the number of updates alone, and all that has to outlast a
stop is in the checkpoint: a resumed run writes the same record as one that was never
stopped.  Of several processes each trains and evaluates its own members; all of them do
so at the same updates, and the first one writes the record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jdql.agents import base
from jdql.config import Config
from jdql.data.dataset import Source
from jdql.runtime import (
    checkpoint,
    distributed,
    evaluate,
    members,
    processes,
    recipe,
    trained,
)
from jdql.runtime.evaluate import open_rollouts
from jdql.runtime.means import Means, first_non_finite
from jdql.runtime.metrics import (
    Writer,
    evaluation_rows,
    measurement_rows,
    read_rows,
)
from jdql.runtime.recipe import Learned, Recipe
from jdql.runtime.stopping import Stopped, signals

CHECKPOINTS = "checkpoints"  # in a run folder


class Outcome(NamedTuple):
    """How a call of `run` ended: updates done, and whether all were."""

    step: int
    finished: bool


class NonFiniteError(ValueError):
    """A loss is no longer a number."""


def run(
    config: Config,
    source: Source,
    directory: Path,
    *,
    resume: bool = False,
    log: Callable[[str], None] = print,
) -> Outcome:
    """Trains, evaluates and saves until `config.train.steps` updates or a signal.

    Ctrl-C and SIGTERM save a checkpoint and return; a second one stops at once.

    Args:
      config: the run; `config.seeds` must be a number.
      source: the dataset.
      directory: the run folder.
      resume: go on from the latest checkpoint in `directory`.
      log: takes lines for the user; called in the first process only.

    Returns:
      The number of updates done, and whether the run is finished.

    Raises:
      NonFiniteError: a metric is not finite; names the seed, the metric and the step.
      ValueError, OSError: bad settings, or a file that cannot be read or written.
    """
    folder = directory if resume else None
    with planned(config, source, resume=folder, log=log) as plan:
        return plan(directory)


@contextlib.contextmanager
def planned(
    config: Config,
    source: Source,
    *,
    resume: Path | None = None,
    log: Callable[[str], None] = print,
) -> Iterator[Callable[[Path], Outcome]]:
    """Everything about a run that can be refused before its folder is made.

    Args:
      config: the run; `config.seeds` must be a number.
      source: the dataset.
      resume: the run folder to go on from, where there is one.
      log: takes lines for the user; called in the first process only.

    Yields:
      `run` of the directory alone.

    Raises:
      ValueError, OSError: the run cannot be trained or evaluated.
    """
    log = processes.first_only(log)
    with contextlib.ExitStack() as stack:
        plan = processes.together(lambda: _plan(config, source, resume))
        plan = plan._replace(play=_open(plan, stack))

        def go(directory: Path) -> Outcome:
            with contextlib.ExitStack() as inner:
                stopping = inner.enter_context(signals(log))
                return _Run(plan, directory, resume is not None, log, inner)(stopping)

        yield go


class Plan(NamedTuple):
    """What a run is made of.

    Attributes:
      config: the run.
      source: the dataset.
      recipe: how the system is made.
      members: the S members.
      inputs: their seeds, settings and what earlier runs learned, on the devices.
      mesh: devices that share the members.
      data: what batches are drawn from, on the devices.
      measure: `(learned, seeds) -> metrics`, held-out numbers; None without any.
      play: evaluation in the simulator; None without any.
    """

    config: Config
    source: Source
    recipe: Recipe
    members: list[members.Member]
    inputs: members.Members
    mesh: Mesh
    data: Any
    measure: Callable[..., Any] | None
    play: evaluate.Play | None

    @property
    def seeds(self) -> list[int]:
        """The seeds of the members."""
        return [member["seed"] for member in self.members]


def _plan(config: Config, source: Source, resume: Path | None) -> Plan:
    """All but the environments."""
    everyone = members.members_of(config)
    mesh = distributed.member_mesh(len(everyone))
    recipes, given = _given(config, source, resume)
    make, spec = base.maker(config.agent), source.agent_spec
    system = Recipe(make, config.agent, spec, source.scaling, recipes)
    members.check(system, config)
    inputs = members.stacked(config.agent, everyone, given)
    data = members.prepared(system, config, source.dataset)
    return Plan(
        config,
        source,
        system,
        everyone,
        distributed.put(inputs, distributed.sharded(mesh)),
        mesh,
        distributed.put(data, distributed.replicated(mesh)),
        _measure(system, config, source, mesh),
        None,
    )


def _open(plan: Plan, stack: contextlib.ExitStack) -> evaluate.Play | None:
    """Opens the environments, where the system acts and has any."""
    policy, settings = recipe.acting(plan.recipe), plan.config.eval
    if policy is None or not (settings.env and settings.episodes):
        return None
    spec = plan.source.spec
    rollouts = open_rollouts(policy, plan.seeds, spec, settings, plan.mesh)
    return stack.enter_context(rollouts)


def _given(
    config: Config, source: Source, resume: Path | None
) -> tuple[dict[str, Recipe], dict[str, Learned]]:
    """What earlier runs learned: in a resumed run as it was saved along."""
    if resume is None or not checkpoint.steps(resume / CHECKPOINTS):
        return trained.earlier(config, source.agent_spec, source.scaling)
    checkpoints = resume / CHECKPOINTS
    before = recipe.from_json(checkpoint.metadata(checkpoints)["recipe"])
    if not before.given:
        return {}, {}
    abstract = recipe.abstract(before, len(members.members_of(config)))
    learned = checkpoint.restore_learned(checkpoints, abstract)
    return dict(before.given), learned.given


def _measure(
    system: Recipe, config: Config, source: Source, mesh: Mesh
) -> Callable[..., Any] | None:
    """Measures on held-out episodes, or on the training data where there are none."""
    measure = members.make_measure(system, mesh)
    if measure is None:
        return None
    held_out = source.dataset if source.held_out is None else source.held_out
    data = members.prepared(system, config, held_out)
    placed = distributed.put(data, distributed.replicated(mesh))
    return lambda learned, seeds: measure(learned, seeds, placed)


class _Run:
    """The loop's variables in one place: what is on the device, and the open files."""

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        resume: bool,
        log: Callable[[str], None],
        stack: contextlib.ExitStack,
    ) -> None:
        self.plan, self.config, self.log = plan, plan.config, log
        self.folder = directory / CHECKPOINTS
        self.shard = distributed.sharded(plan.mesh)
        self.init = members.make_init(plan.recipe, plan.mesh)
        self.learned = members.make_learned(plan.recipe, plan.mesh)
        self.keep_better = jax.jit(checkpoint.keep_better, out_shardings=self.shard)
        self.updates: dict[int, Callable] = {}
        # It may have been stopped before its first checkpoint.
        resume = resume and bool(checkpoint.steps(self.folder))
        self._restore() if resume else self._begin()
        self.saved = self.step if resume else None
        self.checkpoints = stack.enter_context(
            checkpoint.Checkpoints(self.folder, resume_step=self.step)
        )
        self.writer = self._open_writer(directory, stack)
        self.recorded = _recorded(directory) if self.writer else set()

    def _begin(self) -> None:
        plan = self.plan
        with members.traced(plan.recipe, plan.inputs, plan.data):
            self.state = self.init(plan.inputs)
        self.step, self.means, self.best = 0, Means(), None
        self.best_scores = [-np.inf] * len(plan.members)
        self.best_steps = [0] * len(plan.members)
        if plan.play is not None:
            self.best = self.learned(self.state, plan.inputs)

    def _restore(self) -> None:
        state = jax.eval_shape(self.init, self.plan.inputs)
        learned = jax.eval_shape(self.learned, state, self.plan.inputs)
        self.state = checkpoint.restore_train(self.folder, state, sharding=self.shard)
        self.best = None
        if self.plan.play is not None:
            self.best = checkpoint.restore_learned(
                self.folder, learned, "best", sharding=self.shard
            )
        saved = checkpoint.metadata(self.folder)
        self.step = saved["step"]
        self.means = Means(saved.get("means"))
        self.best_steps = saved["best_steps"]
        self.best_scores = [-np.inf if s is None else s for s in saved["best_scores"]]
        self.log(f"resuming at update {self.step}")

    def _open_writer(
        self, directory: Path, stack: contextlib.ExitStack
    ) -> Writer | None:
        """The record, in the first process."""
        if not processes.is_first():
            return None
        writer = Writer(
            directory,
            resume_step=self.saved,
            tensorboard=self.config.run.tensorboard,
            wandb=self.config.run.wandb,
            name=self.config.name,
            config=dataclasses.asdict(self.config),
        )
        return stack.enter_context(writer)

    def __call__(self, stopping: Callable[[], bool]) -> Outcome:
        total = self.config.train.steps
        bar = tqdm(
            total=total,
            initial=self.step,
            unit="update",
            disable=not (processes.is_first() and sys.stderr.isatty()),
        )
        with bar:
            while True:
                try:
                    if self._due(self.step):
                        self._evaluate(stopping, bar)
                    if self.step >= total or processes.any_of(stopping()):
                        break
                    self._advance(bar)
                except Stopped:
                    break
        if self.saved != self.step:
            self._save()
        self.checkpoints.wait()
        return Outcome(self.step, self.step >= total)

    def _due(self, step: int) -> bool:
        """Whether an evaluation and a checkpoint of this moment are wanted."""
        every = self.config.eval.every
        if not (step > 0 and (step % every == 0 or step >= self.config.train.steps)):
            return False
        return processes.any_of(self.writer is not None and step not in self.recorded)

    def _length(self) -> int:
        """Updates to the next moment at which the loop has something to do."""
        train = self.config.train
        quick = max(1, train.log_every // 10)
        size = train.call or (quick if distributed.on_cpu() else train.log_every)
        periods = (size, train.log_every, self.config.eval.every)
        following = [(self.step // period + 1) * period for period in periods]
        return min(*following, train.steps) - self.step

    def _advance(self, bar: tqdm) -> None:
        plan, length = self.plan, self._length()
        if length not in self.updates:
            self.updates[length] = members.make_updates(plan.recipe, plan.mesh, length)
        with members.traced(plan.recipe, plan.inputs, plan.data):
            self.state, metrics = self.updates[length](
                self.state, plan.inputs, plan.data
            )
        values = {name: processes.to_host(value) for name, value in metrics.items()}
        self._check_finite(values)
        self.step += length
        bar.update(length)
        self.means.add(values)
        if self.step % self.config.train.log_every == 0:
            means = self.means.take()
            if self.writer:
                self.writer.metrics(self.step, plan.members, means)
            shown = {name: f"{value.mean():.3g}" for name, value in means.items()}
            bar.set_postfix(shown, refresh=False)

    def _check_finite(self, values: dict[str, np.ndarray]) -> None:
        found = first_non_finite(values)
        if found is None:
            return
        name, member, offset = found
        saved = "none" if self.saved is None else f"update {self.saved}"
        raise NonFiniteError(
            f"{members.describe(self.plan.members[member])}: {name} is "
            f"{values[name][member, offset]} at update {self.step + offset + 1}; the "
            f"last checkpoint is {saved}. Try a smaller learning rate or eta, or a "
            "smaller grad_norm"
        )

    def _evaluate(self, stopping: Callable[[], bool], bar: tqdm) -> None:
        learned = self.learned(self.state, self.plan.inputs)
        if self.plan.measure is not None:
            self._take_measure(learned, bar)
        score = self._roll_out(learned, stopping, bar) if self.plan.play else None
        self.recorded.add(self.step)
        self._save(score)

    def _take_measure(self, learned: Learned, bar: tqdm) -> None:
        """Measures and records what needs no simulator."""
        assert self.plan.measure is not None
        found = self.plan.measure(learned, self.plan.inputs.seed)
        values = {name: processes.to_host(value) for name, value in found.items()}
        source = self.plan.source
        if self.writer:
            self.writer.measurement(
                measurement_rows(
                    self.step,
                    self.plan.members,
                    values,
                    dataset=source.id,
                    held_out=source.held_out is not None,
                )
            )
        bar.clear()
        shown = ", ".join(f"{name} {v.mean():.4g}" for name, v in values.items())
        self.log(f"update {self.step}: {shown}")

    def _roll_out(
        self, learned: Learned, stopping: Callable[[], bool], bar: tqdm
    ) -> float:
        """Plays and records; returns the mean score, or the return without one."""
        settings, plan = self.config.eval, self.plan
        assert plan.play is not None
        result = plan.play(learned, stopping)
        scores = evaluate.scores(result, settings)
        if self.writer:
            rows = evaluation_rows(
                self.step,
                plan.members,
                result,
                scores,
                dataset=plan.source.id,
                env=settings.env,
                reference=settings.reference,
                versions=evaluate.versions(),
            )
            self.writer.evaluation(rows)
        kept = (result.returns if scores is None else scores).mean(axis=1)
        better = kept > np.asarray(self.best_scores)
        self.best = self.keep_better(self.best, learned, better)
        self.best_scores = np.maximum(self.best_scores, kept).tolist()
        self.best_steps = np.where(better, self.step, self.best_steps).tolist()
        bar.clear()
        unit = "return" if scores is None else "score"
        each = members.listed(plan.members, kept)
        self.log(f"update {self.step}: mean {unit} {kept.mean():.1f} ({each})")
        return float(kept.mean())

    def _save(self, score: float | None = None) -> None:
        plan = self.plan
        scores = [s if np.isfinite(s) else None for s in self.best_scores]
        self.checkpoints.save(
            self.step,
            train=self.state,
            learned=self.learned(self.state, plan.inputs),
            best=self.best,
            metadata={
                "members": plan.members,
                "dataset": plan.source.id,
                "recipe": recipe.to_json(plan.recipe),
                "space": plan.source.spec._asdict(),
                "best_scores": scores,
                "best_steps": self.best_steps,
                "means": self.means.state(),
            },
            score=score,
        )
        self.saved = self.step


def _recorded(directory: Path) -> set[int]:
    """The updates at which the run was evaluated or measured."""
    files = ("evaluations.jsonl", "measurements.jsonl")
    return {row["step"] for file in files for row in read_rows(directory / file)}
