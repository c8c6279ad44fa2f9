"""The run loop: chunks of updates, evaluations, checkpoints, and stopping on a signal.

What happens when depends on the number of updates alone, and everything that outlasts a
checkpoint is in it: a resumed run writes the rows of an unbroken one.  Of several
processes each trains and evaluates its own members; all take the same turns, and the
first one writes the record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jdql.agents.base import Agent, Maker, scaled
from jdql.config import Config
from jdql.data.dataset import Source
from jdql.data.scaling import describe
from jdql.references import normalized
from jdql.runtime import checkpoint, distributed, evaluate, members, processes
from jdql.runtime.means import Means, first_non_finite
from jdql.runtime.members import Members as Members
from jdql.runtime.members import make_chunk, make_init
from jdql.runtime.metrics import Writer, evaluation_rows, read_rows
from jdql.runtime.playing import open_rollouts
from jdql.runtime.stopping import Stopped, signals
from jdql.types import DataSpec


class Outcome(NamedTuple):
    """How a call of `run` ended: updates done, and whether all were."""

    step: int
    finished: bool


class NonFiniteError(ValueError):
    """A loss is no longer a number."""


def run(
    config: Config,
    make: Maker,
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
      make: the maker of the agent of `config.agent`.
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
    log = processes.first_only(log)
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(signals(log))
        return _Run(config, make, source, directory, resume, log, stack)(stopping)


class _Run:
    """The loop's variables in one place: what is on the device, and the open files."""

    def __init__(
        self,
        config: Config,
        make: Maker,
        source: Source,
        directory: Path,
        resume: bool,
        log: Callable[[str], None],
        stack: contextlib.ExitStack,
    ) -> None:
        self.config, self.source, self.log = config, source, log
        self.folder = directory / "checkpoints"
        self.rows = members.rows(config)
        self.seeds = [row["seed"] for row in self.rows]
        self.settings = members.settings(self.rows)
        self.mesh = distributed.member_mesh(len(self.rows))
        members.check(make, config, source.agent_spec, source.dataset)
        self._define(make)
        self.play = None
        if config.eval.env and config.eval.episodes:
            rollouts = open_rollouts(
                self.maker, config.agent, source.spec, config.eval, self.rows, self.mesh
            )
            self.play = stack.enter_context(rollouts)
        everywhere = distributed.replicated(self.mesh)
        self.members = distributed.put(members.stacked(self.rows), self.shard)
        self.dataset = distributed.put(source.dataset, everywhere)
        # It may have been stopped before its first checkpoint.
        resume = resume and bool(checkpoint.steps(self.folder))
        self._restore() if resume else self._begin()
        self.saved = self.step if resume else None
        self.checkpoints = stack.enter_context(
            checkpoint.Checkpoints(self.folder, resume_step=self.step)
        )
        self.writer = self._open_writer(directory, stack)
        known = read_rows(directory / "evaluations.jsonl") if self.writer else []
        self.evaluated = {row["step"] for row in known}

    def _define(self, make: Maker) -> None:
        """The compiled functions."""
        config, spec = self.config.agent, self.source.agent_spec

        def maker(settings: Any, _: DataSpec) -> Agent:
            return scaled(make(settings, spec), self.source.scaling)

        self.maker, self.shard = maker, distributed.sharded(self.mesh)
        policy = jax.vmap(maker(config, spec).policy)
        self.policies = jax.jit(policy, out_shardings=self.shard)
        self.keep_better = jax.jit(checkpoint.keep_better, out_shardings=self.shard)
        self.init = make_init(make, config, spec, self.mesh)
        self.chunks: dict[int, Callable] = {}
        self.make_chunk = lambda length: make_chunk(
            make, config, spec, self.mesh, length
        )

    def _begin(self) -> None:
        self.step, self.state, self.means = 0, self.init(self.members), Means()
        # A copy: the state is donated to the next chunk.
        self.best = jax.tree.map(jnp.copy, self.policies(self.state))
        self.best_scores = [-np.inf] * len(self.rows)
        self.best_steps = [0] * len(self.rows)

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

    def _restore(self) -> None:
        state = jax.eval_shape(self.init, self.members)
        policy = jax.eval_shape(self.policies, state)
        self.state = checkpoint.restore_train(self.folder, state, sharding=self.shard)
        self.best = checkpoint.restore_policy(
            self.folder, policy, "best", sharding=self.shard
        )
        saved = checkpoint.metadata(self.folder)
        self.step = saved["step"]
        self.means = Means(saved.get("means"))
        self.best_steps = saved["best_steps"]
        self.best_scores = [-np.inf if s is None else s for s in saved["best_scores"]]
        self.log(f"resuming at update {self.step}")

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
        return processes.any_of(self.writer is not None and step not in self.evaluated)

    def _length(self) -> int:
        """Updates to the next moment at which the loop has something to do."""
        train = self.config.train
        quick = max(1, train.log_every // 10)
        size = train.chunk or (quick if distributed.on_cpu() else train.log_every)
        periods = (size, train.log_every, self.config.eval.every)
        following = [(self.step // period + 1) * period for period in periods]
        return min(*following, train.steps) - self.step

    def _advance(self, bar: tqdm) -> None:
        length = self._length()
        if length not in self.chunks:
            self.chunks[length] = self.make_chunk(length)
        self.state, metrics = self.chunks[length](
            self.state, self.members, self.dataset
        )
        values = {name: processes.to_host(value) for name, value in metrics.items()}
        self._check_finite(values)
        self.step += length
        bar.update(length)
        self.means.add(values)
        if self.step % self.config.train.log_every == 0:
            means = self.means.take()
            if self.writer:
                self.writer.metrics(self.step, self.seeds, means, self.settings)
            shown = {name: f"{value.mean():.3g}" for name, value in means.items()}
            bar.set_postfix(shown, refresh=False)

    def _check_finite(self, values: dict[str, np.ndarray]) -> None:
        found = first_non_finite(values)
        if found is None:
            return
        name, member, offset = found
        saved = "none" if self.saved is None else f"update {self.saved}"
        raise NonFiniteError(
            f"{members.describe(self.rows[member])}: {name} is "
            f"{values[name][member, offset]} at update {self.step + offset + 1}; the "
            f"last checkpoint is {saved}. Try a smaller learning rate or eta, or a "
            "smaller grad_norm"
        )

    def _evaluate(self, stopping: Callable[[], bool], bar: tqdm) -> None:
        score = self._roll_out(stopping, bar) if self.play else None
        self.evaluated.add(self.step)
        self._save(score)

    def _roll_out(self, stopping: Callable[[], bool], bar: tqdm) -> float:
        """Plays and records; returns the mean score, or the return without one."""
        settings, policies = self.config.eval, self.policies(self.state)
        assert self.play is not None
        returns, lengths = self.play(policies, self.members.hyper, stopping)
        scores = normalized(returns, settings.reference) if settings.reference else None
        if self.writer:
            rows = evaluation_rows(
                self.step,
                self.seeds,
                returns,
                lengths,
                scores,
                dataset=self.source.id,
                env=settings.env,
                reference=settings.reference,
                versions=evaluate.versions(),
                settings=self.settings,
            )
            self.writer.evaluation(rows)
        kept = (returns if scores is None else scores).mean(axis=1)
        better = kept > np.asarray(self.best_scores)
        self.best = self.keep_better(self.best, policies, better)
        self.best_scores = np.maximum(self.best_scores, kept).tolist()
        self.best_steps = np.where(better, self.step, self.best_steps).tolist()
        bar.clear()
        unit = "return" if scores is None else "score"
        each = members.listed(self.rows, kept)
        self.log(f"update {self.step}: mean {unit} {kept.mean():.1f} ({each})")
        return float(kept.mean())

    def _save(self, score: float | None = None) -> None:
        scores = [s if np.isfinite(s) else None for s in self.best_scores]
        self.checkpoints.save(
            self.step,
            train=self.state,
            policy=self.policies(self.state),
            best=self.best,
            metadata={
                "seeds": self.seeds,
                "members": self.rows,
                "dataset": self.source.id,
                "spec": self.source.spec._asdict(),
                "agent_spec": self.source.agent_spec._asdict(),
                "scaling": describe(self.source.scaling),
                "best_scores": scores,
                "best_steps": self.best_steps,
                "means": self.means.state(),
            },
            score=score,
        )
        self.saved = self.step
