"""The panels of the bandit's figures: what each trains, and the actions it draws."""

from __future__ import annotations

import dataclasses
import importlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

import jdql
from experiments.bandit import bc_cvae, bc_mle, bc_mmd, ql_cvae, ql_mle, ql_mmd
from jdql.agents import diffusion_bc, diffusion_ql
from jdql.agents.base import Maker, Policy
from jdql.config import DataConfig
from jdql.data import sources
from jdql.data.dataset import Source
from jdql.runtime import acting, distributed
from jdql.runtime.train import Members, make_chunk, make_init

CHUNK = 500  # updates in one device call, and between two lines of progress at most
DRAWN = 10_000  # actions of each seed, for the shares
STEPS = (2, 5, 10, 50)  # diffusion steps shown; the authors' figures have the last
CLONING, REWARDED = "jdql.envs.bandit:cloning", "jdql.envs.bandit:dataset"

Log = Callable[[str], None]


class Panel(NamedTuple):
    """One trained method.

    Attributes:
      title: what stands above the panel.
      agent: settings; the module that they come from makes the agent.
      data: the entry of `data.dataset`.
      updates: gradient steps.
    """

    title: str
    agent: Any
    data: str
    updates: int

    @property
    def slug(self) -> str:
        """The panel's file name."""
        return "".join(c if c.isalnum() else "_" for c in self.title.lower())

    @property
    def make(self) -> Maker:
        """The maker of the agent."""
        return importlib.import_module(type(self.agent).__module__).make


class Updates(NamedTuple):
    """Gradient steps of each kind of panel.

    Attributes:
      baseline: of every method without diffusion; the cheapest.
      cloning: of diffusion cloning, whose updates need no chain.
      improving: of Diffusion-QL, whose updates run the chain.
    """

    baseline: int
    cloning: int
    improving: int


DEFAULT = Updates(baseline=20_000, cloning=40_000, improving=10_000)
FULL = Updates(*[100_000] * 3)  # the authors': 1000 epochs of 100


def diffusion_settings(steps: int, **others: Any) -> dict[str, Any]:
    """The authors' settings of the diffusion policies of their toy tasks."""
    shared = {"lr": 3e-4, "batch_size": 100, "hidden": (128, 128, 128), "step_dim": 4}
    return {"grad_norm": None, "diffusion_steps": steps, **shared, **others}


def diffusion_cloning(steps: int, updates: int) -> Panel:
    """BC-Diffusion with a chain of `steps`."""
    agent = diffusion_bc.Config(**diffusion_settings(steps))
    return Panel(f"BC-Diffusion, T = {steps}", agent, CLONING, updates)


def diffusion_improving(steps: int, updates: int) -> Panel:
    """Diffusion-QL with a chain of `steps`, the gradient going through all of it.

    The authors' critic here regresses the immediate reward. Transitions that all end
    their episode, as the bandit's do, make that of the agent's own target.
    """
    agent = diffusion_ql.Config(**diffusion_settings(steps, eta=2.5))
    return Panel(f"Diffusion-QL, T = {steps}", agent, REWARDED, updates)


def cloning(updates: Updates) -> list[Panel]:
    """The baselines of the first figure."""
    return [
        Panel("BC-MLE", bc_mle.Config(), CLONING, updates.baseline),
        Panel("BC-CVAE", bc_cvae.Config(), CLONING, updates.baseline),
        Panel("BC-MMD", bc_mmd.Config(), CLONING, updates.baseline),
    ]


def improving(updates: Updates, shifted: bool = False) -> list[Panel]:
    """The baselines of the second figure, by the labels of the authors' figure."""
    bcq = ql_cvae.Config(shifted=shifted)
    return [
        Panel("TD3+BC", ql_mle.Config(), REWARDED, updates.baseline),
        Panel("BCQ, shifted" if shifted else "BCQ", bcq, REWARDED, updates.baseline),
        Panel("BEAR-MMD", ql_mmd.Config(), REWARDED, updates.baseline),
    ]


def train(
    panel: Panel, seeds: Sequence[int], source: Source, log: Log | None = None
) -> Policy:
    """Trains one panel with every seed; returns the policies stacked over seeds.

    Raises:
      FloatingPointError: a metric is not finite.
    """
    mesh = distributed.member_mesh(len(seeds))
    shard = distributed.sharded(mesh)
    members = jax.device_put(Members(np.asarray(seeds, np.uint32), {}), shard)
    dataset = jax.device_put(source.dataset, distributed.replicated(mesh))
    state = make_init(panel.make, panel.agent, source.spec, mesh)(members)
    start, done = time.monotonic(), 0
    chunks: dict[int, Callable] = {}
    while done < panel.updates:
        length = min(CHUNK, panel.updates - done)
        if length not in chunks:
            chunks[length] = make_chunk(
                panel.make, panel.agent, source.spec, mesh, length
            )
        state, metrics = chunks[length](state, members, dataset)
        done += length
        for name, values in metrics.items():
            if not np.isfinite(values).all():
                raise FloatingPointError(f"{panel.title}: {name} by update {done}")
        if log is not None:
            log(
                f"{panel.title}: {done}/{panel.updates}, {time.monotonic() - start:.0f} s"
            )
    return jax.vmap(panel.make(panel.agent, source.spec).policy)(state)


def sample(
    panel: Panel, policies: Policy, seeds: Sequence[int], source: Source, count: int
) -> NDArray[np.float32]:
    """Draws actions of the trained policies, `[S, count, A]`.

    Diffusion-QL draws from its actor alone, without choosing among candidates, as the
    authors' figure does.
    """
    config = panel.agent
    if isinstance(config, diffusion_ql.Config):
        config = dataclasses.replace(config, candidates=1)
    agent = panel.make(config, source.spec)
    mesh = distributed.member_mesh(len(seeds))
    observation = np.zeros(source.spec.observation_dim, np.float32)

    def draw(member: tuple[Policy, Any], observation: Any) -> Any:
        policy, keys = member
        act = jax.vmap(agent.act, in_axes=(None, None, None, 0))
        return act(policy, agent.reset(), observation, keys)[0]

    keys = acting.episode_keys(seeds, range(count))
    mapped = jax.jit(distributed.map_members(draw, mesh))
    members = jax.device_put((policies, keys), distributed.sharded(mesh))
    return np.asarray(mapped(members, observation))


def actions(
    panel: Panel, seeds: Sequence[int], folder: Path, log: Log, count: int = DRAWN
) -> NDArray[np.float32]:
    """The panel's actions `[S, count, A]`: from `folder`, or else trained for.

    A panel that was trained with the very same settings is not trained again.
    """
    path = folder / f"{panel.slug}.npz"
    settings = json.dumps(
        {
            "jdql": jdql.__version__,
            "module": type(panel.agent).__module__,
            "agent": dataclasses.asdict(panel.agent),
            "data": panel.data,
            "updates": panel.updates,
            "seeds": list(seeds),
            "count": count,
        }
    )
    if path.is_file():
        with np.load(path) as file:
            if str(file["settings"]) == settings:
                log(f"{panel.title}: read from {path}")
                return file["actions"]
    source = sources.load(DataConfig(dataset=(panel.data,)), log=lambda line: None)
    start = time.monotonic()
    policies = jax.block_until_ready(train(panel, seeds, source))
    drawn = sample(panel, policies, seeds, source, count)
    seconds = time.monotonic() - start
    log(f"{panel.title}: {panel.updates} updates, {len(seeds)} seeds, {seconds:.0f} s")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, actions=drawn, settings=settings, seconds=seconds)
    temporary.replace(path)
    return drawn
