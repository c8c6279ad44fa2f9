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

from jdql.agents.base import Agent, Maker, State, scaled
from jdql.config import Config
from jdql.data.dataset import Source
from jdql.envs.references import normalized
from jdql.runtime import distributed, evaluate, members, processes
from jdql.runtime.checkpoint import (
    Checkpoints,
    keep_better,
    metadata,
    restore_policy,
    restore_train,
    steps,
)
from jdql.runtime.means import Means
from jdql.runtime.members import Members, make_chunk, make_init, member_agent
from jdql.runtime.metrics import Writer, evaluation_rows, read_rows
from jdql.runtime.playing import open_rollouts
from jdql.runtime.stopping import Stopped, signals
from jdql.types import DataSpec

__all__ = [
    "Members",
    "NonFiniteError",
    "Outcome",
    "make_chunk",
    "make_init",
    "member_agent",
    "run",
]


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
    if not processes.is_first():
        log = _silent
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(signals(log))
        return _Run(config, make, source, directory, resume, log, stack)(stopping)


def _silent(line: str) -> None:
    """The log of the other processes."""


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
        self.rows = members.rows(config)
        self.seeds = [row["seed"] for row in self.rows]
        self.settings = members.settings(self.rows)
        self.mesh = distributed.member_mesh(len(self.rows))
        members.check(make, config, source.spec, source.dataset)

        def maker(settings: Any, spec: DataSpec) -> Agent:
            return scaled(make(settings, spec), source.scaling)

        self.agent = maker(config.agent, source.spec)
        self.play = None
        if config.eval.env and config.eval.episodes:
            self.play = stack.enter_context(
                open_rollouts(
                    maker, config.agent, source.spec, config.eval, self.rows, self.mesh
                )
            )
        shard = distributed.sharded(self.mesh)
        self.members = distributed.put(members.stacked(self.rows), shard)
        self.dataset = distributed.put(
            source.dataset, distributed.replicated(self.mesh)
        )
        self.chunks: dict[int, Callable] = {}
        self.make_chunk = lambda length: make_chunk(
            make, config.agent, source.spec, self.mesh, length
        )
        self.policies = jax.jit(jax.vmap(self.agent.policy), out_shardings=shard)
        self.keep_better = jax.jit(keep_better, out_shardings=shard)
        init = make_init(make, config.agent, source.spec, self.mesh)
        self.folder = directory / "checkpoints"
        resume = resume and bool(steps(self.folder))  # stopped before its first one
        self.means = Means()
        if resume:
            self._restore(jax.eval_shape(init, self.members), shard)
        else:
            self.step, self.state = 0, init(self.members)
            # A copy: the state is donated to the next chunk.
            self.best = jax.tree.map(jnp.copy, self.policies(self.state))
            self.best_scores = [-np.inf] * len(self.rows)
            self.best_steps = [0] * len(self.rows)
        self.saved = self.step if resume else None
        self.checkpoints = stack.enter_context(
            Checkpoints(self.folder, resume_step=self.step)
        )
        self.writer = self._open_writer(directory, stack)
        known = read_rows(directory / "evaluations.jsonl") if self.writer else []
        self.evaluated = {row["step"] for row in known}

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

    def _restore(self, abstract: State, sharding) -> None:
        self.state = restore_train(self.folder, abstract, sharding=sharding)
        policy = jax.eval_shape(self.policies, abstract)
        self.best = restore_policy(self.folder, policy, "best", sharding=sharding)
        saved = metadata(self.folder)
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
        bad = {n: np.argwhere(~np.isfinite(value)) for n, value in values.items()}
        found = {
            n: where[np.argmin(where[:, 1])] for n, where in bad.items() if len(where)
        }
        if not found:
            return
        name = min(found, key=lambda n: found[n][1])
        member, offset = found[name]
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
                "best_scores": scores,
                "best_steps": self.best_steps,
                "means": self.means.state(),
            },
            score=score,
        )
        self.saved = self.step
