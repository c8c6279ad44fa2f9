"""Training: all members at once, in compiled chunks of updates, and the run loop.

A chunk is `jit(map over members(scan(update)))` with the state donated and the dataset
shared.  The key of an update is `fold_in(train key of the seed, step)`, so that a
resumed run equals an unbroken one bit for bit and no key has to be saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jdql.agents.base import Agent, Maker, State, scaled
from jdql.config import Config
from jdql.data.dataset import Dataset, Source
from jdql.envs.references import normalized
from jdql.runtime import distributed, evaluate
from jdql.runtime.checkpoint import (
    Checkpoints,
    keep_better,
    metadata,
    restore_policy,
    restore_train,
    steps,
)
from jdql.runtime.metrics import Writer, evaluation_rows, read_rows
from jdql.types import Array, DataSpec, Float, Int


class Members(NamedTuple):
    """What distinguishes the S members of a run.

    Attributes:
      seed: `[S]` uint32.
      hyper: float settings of the agent by field name, each `[S]`.
    """

    seed: Int[Array, " S"]
    hyper: dict[str, Float[Array, " S"]]


class Outcome(NamedTuple):
    """How a call of `run` ended: updates done, and whether all were."""

    step: int
    finished: bool


class NonFiniteError(ValueError):
    """A loss is no longer a number."""


class Stopped(Exception):
    """The user asked the run to stop."""


def member_agent(
    make: Maker, config: Any, spec: DataSpec, hyper: dict[str, Array]
) -> Agent:
    """The agent of one member: the settings in `hyper` may be traced numbers."""
    return make(dataclasses.replace(config, **hyper), spec)


def make_init(
    make: Maker, config: Any, spec: DataSpec, mesh: Mesh
) -> Callable[[Members], State]:
    """A function that initialises the states of all members, sharded over `mesh`."""

    def init(member: Members, _: tuple) -> State:
        agent = member_agent(make, config, spec, member.hyper)
        return agent.init(jax.random.split(jax.random.key(member.seed))[0])

    mapped = distributed.map_members(init, mesh)
    return jax.jit(lambda members: mapped(members, ()))


def make_chunk(
    make: Maker, config: Any, spec: DataSpec, mesh: Mesh, length: int
) -> Callable[[State, Members, Dataset], tuple[State, dict[str, Array]]]:
    """A compiled function that makes `length` updates of every member.

    Returns:
      `(states, members, dataset) -> (states, metrics)`; the states are donated, and
      each metric is `[S, length]`.
    """

    def member_chunk(inputs: tuple[State, Members], dataset: Dataset):
        state, member = inputs
        agent = member_agent(make, config, spec, member.hyper)
        train_key = jax.random.split(jax.random.key(member.seed))[1]

        def update(state: State, _: None):
            key = jax.random.fold_in(train_key, state.step)
            batch_key, draw_key = jax.random.split(key)
            batch = agent.sample_batch(batch_key, dataset)
            return agent.update_step(state, batch, agent.draw(draw_key))

        return jax.lax.scan(update, state, None, length=length)

    mapped = distributed.map_members(member_chunk, mesh)

    def chunk(states: State, members: Members, dataset: Dataset):
        return mapped((states, members), dataset)

    return jax.jit(chunk, donate_argnums=distributed.donated(mesh, 0))


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
      log: takes lines for the user.

    Returns:
      The number of updates done, and whether the run is finished.

    Raises:
      NonFiniteError: a metric is not finite; names the seed, the metric and the step.
      ValueError, OSError: bad settings, or a file that cannot be read or written.
    """
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(_signals(log))
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
        assert config.seeds is not None
        self.config, self.source, self.log = config, source, log
        self.seeds = list(range(config.seed, config.seed + config.seeds))
        self.mesh = distributed.member_mesh(config.seeds)
        self.agent = scaled(make(config.agent, source.spec), source.scaling)
        self.rollouts = None
        if config.eval.env and config.eval.episodes:
            self.rollouts = stack.enter_context(
                evaluate.Rollouts(
                    self.agent, self.seeds, source.spec, config.eval, mesh=self.mesh
                )
            )
        shard = distributed.sharded(self.mesh)
        members = Members(np.asarray(self.seeds, np.uint32), {})
        self.members = jax.device_put(members, shard)
        self.dataset = jax.device_put(source.dataset, distributed.replicated(self.mesh))
        self.chunks: dict[int, Callable] = {}
        self.make_chunk = lambda length: make_chunk(
            make, config.agent, source.spec, self.mesh, length
        )
        init = make_init(make, config.agent, source.spec, self.mesh)
        self.folder = directory / "checkpoints"
        if resume and not steps(self.folder):
            resume = False  # it was stopped before its first checkpoint
        if resume:
            self._restore(jax.eval_shape(init, self.members), shard)
        else:
            self.step, self.state = 0, init(self.members)
            # A copy: the state is donated to the next chunk.
            self.best = jax.tree.map(jnp.copy, self._policies())
            self.best_scores = [-np.inf] * config.seeds
            self.best_steps = [0] * config.seeds
        self.checkpoints = stack.enter_context(
            Checkpoints(self.folder, resume_step=self.step)
        )
        self.writer = stack.enter_context(
            Writer(
                directory,
                resume_step=self.step if resume else None,
                tensorboard=config.run.tensorboard,
                wandb=config.run.wandb,
                name=config.name,
                config=dataclasses.asdict(config),
            )
        )
        rows = read_rows(directory / "evaluations.jsonl")
        self.evaluated = {row["step"] for row in rows}
        self.saved = self.step if resume else None
        self.window: list[dict[str, np.ndarray]] = []

    def _restore(self, abstract: State, sharding) -> None:
        self.state = restore_train(self.folder, abstract, sharding=sharding)
        policy = jax.eval_shape(jax.vmap(self.agent.policy), abstract)
        self.best = restore_policy(self.folder, policy, "best", sharding=sharding)
        saved = metadata(self.folder)
        self.step = saved["step"]
        self.best_steps = saved["best_steps"]
        self.best_scores = [-np.inf if s is None else s for s in saved["best_scores"]]
        self.log(f"resuming at update {self.step}")

    def __call__(self, stopping: Callable[[], bool]) -> Outcome:
        total = self.config.train.steps
        bar = tqdm(
            total=total,
            initial=self.step,
            unit="update",
            disable=not sys.stderr.isatty(),
        )
        with bar:
            while True:
                try:
                    if self._due(self.step) and self.step not in self.evaluated:
                        self._evaluate(stopping, bar)
                    if self.step >= total or stopping():
                        break
                    self._advance(bar)
                except Stopped:
                    break
        if self.saved != self.step:
            self._save()
        self.checkpoints.wait()
        return Outcome(self.step, self.step >= total)

    def _due(self, step: int) -> bool:
        every = self.config.eval.every
        return step > 0 and (step % every == 0 or step >= self.config.train.steps)

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
        values = {name: np.asarray(value) for name, value in metrics.items()}
        self._check_finite(values)
        self.step += length
        bar.update(length)
        self.window.append(values)
        if self.step % self.config.train.log_every == 0:
            means = {
                name: np.concatenate([w[name] for w in self.window], axis=1).mean(1)
                for name in values
            }
            self.window = []
            self.writer.metrics(self.step, self.seeds, means)
            shown = {name: f"{value.mean():.3g}" for name, value in means.items()}
            bar.set_postfix(shown, refresh=False)

    def _check_finite(self, values: dict[str, np.ndarray]) -> None:
        for name, value in values.items():
            bad = np.argwhere(~np.isfinite(value))
            if len(bad):
                member, offset = bad[np.argmin(bad[:, 1])]
                saved = "none" if self.saved is None else f"update {self.saved}"
                raise NonFiniteError(
                    f"seed {self.seeds[member]}: {name} is {value[member, offset]} at "
                    f"update {self.step + offset + 1}; the last checkpoint is {saved}. "
                    "Try a smaller learning rate or eta, or a smaller grad_norm"
                )

    def _policies(self):
        return jax.vmap(self.agent.policy)(self.state)

    def _evaluate(self, stopping: Callable[[], bool], bar: tqdm) -> None:
        if self.rollouts is not None:
            self._roll_out(stopping, bar)
        self.evaluated.add(self.step)
        self._save()

    def _roll_out(self, stopping: Callable[[], bool], bar: tqdm) -> None:
        def progress(*_: Any) -> None:
            if stopping():
                raise Stopped

        assert self.rollouts is not None
        policies, settings = self._policies(), self.config.eval
        result = self.rollouts(policies, progress=progress)
        scores = None
        if settings.reference:
            scores = normalized(result.returns, settings.reference)
        rows = evaluation_rows(
            self.step,
            self.seeds,
            result.returns,
            result.lengths,
            scores,
            dataset=self.source.id,
            env=settings.env,
            reference=settings.reference,
            versions=evaluate.versions(),
        )
        self.writer.evaluation(rows)
        kept = result.returns if scores is None else scores
        self._keep_best(policies, kept.mean(axis=1))
        unit = "return" if scores is None else "score"
        each = " ".join(f"{value:.1f}" for value in kept.mean(axis=1))
        bar.clear()
        self.log(f"update {self.step}: mean {unit} {kept.mean():.1f} (seeds: {each})")

    def _keep_best(self, policies: Any, scores: np.ndarray) -> None:
        better = scores > np.asarray(self.best_scores)
        self.best = jax.jit(keep_better)(self.best, policies, jnp.asarray(better))
        self.best_scores = np.maximum(self.best_scores, scores).tolist()
        self.best_steps = np.where(better, self.step, self.best_steps).tolist()
        self.score = float(scores.mean())

    def _save(self) -> None:
        evaluated = self.rollouts is not None and self.step in self.evaluated
        scores = [s if np.isfinite(s) else None for s in self.best_scores]
        self.checkpoints.save(
            self.step,
            train=self.state,
            policy=self._policies(),
            best=self.best,
            metadata={
                "seeds": self.seeds,
                "dataset": self.source.id,
                "spec": self.source.spec._asdict(),
                "best_scores": scores,
                "best_steps": self.best_steps,
            },
            score=self.score if evaluated and hasattr(self, "score") else None,
        )
        self.saved = self.step


@contextlib.contextmanager
def _signals(log: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Turns the first SIGINT or SIGTERM into a flag; yields the flag's reader."""
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        log("stopping: saving a checkpoint (once more to stop at once)")

    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield lambda: bool(received)
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
