"""The panels of the bandit's figures: what each trains, and the actions it draws."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

import jdql
from experiments.studies.bandit import bc_cvae, bc_mle, bc_mmd, ql_cvae, ql_mle, ql_mmd
from jdql.agents import diffusion_bc, diffusion_ql
from jdql.agents.base import Maker, Policy
from jdql.config import SWEPT, DataConfig
from jdql.data import sources
from jdql.data.dataset import Source
from jdql.runtime import acting, distributed, members
from jdql.runtime.train import NonFiniteError

CHUNK = 500  # updates in one device call: Ctrl-C is heard in between
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
      annealed: whether the learning rates fall to 0, along half a cosine.
    """

    title: str
    agent: Any
    data: str
    updates: int
    annealed: bool = False

    @property
    def slug(self) -> str:
        """The panel's file name."""
        words = re.findall(r"\w+", self.title.lower())
        return "_".join(words)

    @property
    def make(self) -> Maker:
        """The maker of the agent."""
        return importlib.import_module(type(self.agent).__module__).make


class Budget(NamedTuple):
    """How long each kind of panel is trained, and how fast it learns.

    Attributes:
      baseline: updates of every method without diffusion.
      cloning: updates of diffusion cloning, which need no chain.
      improving: updates of Diffusion-QL, which run the chain and cost the most.
      lr: of the diffusion policies, and of Diffusion-QL's critic.
      annealed: whether those rates fall to 0 in the course of training.
    """

    baseline: int
    cloning: int
    improving: int
    lr: float
    annealed: bool


# Deviation: the authors' diffusion policies learn at 3e-4 throughout, for 100,000
# updates.  Ten times that rate needs a tenth of the updates, and annealing takes the
# wobble out of what it ends with.
DEFAULT = Budget(6_000, 15_000, 7_000, lr=3e-3, annealed=True)
FULL = Budget(100_000, 100_000, 100_000, lr=3e-4, annealed=False)


def diffusion_settings(steps: int, lr: float) -> dict[str, Any]:
    """The authors' settings of the diffusion policies of their toy tasks."""
    return {
        "diffusion_steps": steps,
        "lr": lr,
        "batch_size": 100,
        "hidden": (128, 128, 128),
        "step_dim": 4,
        "grad_norm": None,
    }


def diffusion_cloning(steps: int, budget: Budget) -> Panel:
    """BC-Diffusion with a chain of `steps`."""
    agent = diffusion_bc.Config(**diffusion_settings(steps, budget.lr))
    return Panel(
        f"BC-Diffusion, T = {steps}", agent, CLONING, budget.cloning, budget.annealed
    )


def diffusion_improving(steps: int, budget: Budget) -> Panel:
    """Diffusion-QL with a chain of `steps`, the gradient going through all of it.

    The authors' critic here regresses the immediate reward. Transitions that all end
    their episode, as the bandit's do, make that of the agent's own target.
    """
    settings = diffusion_settings(steps, budget.lr)
    agent = diffusion_ql.Config(eta=2.5, critic_lr=budget.lr, **settings)
    return Panel(
        f"Diffusion-QL, T = {steps}", agent, REWARDED, budget.improving, budget.annealed
    )


def cloning(budget: Budget) -> list[Panel]:
    """The baselines of the first figure."""
    return [
        Panel("BC-MLE", bc_mle.Config(), CLONING, budget.baseline),
        Panel("BC-CVAE", bc_cvae.Config(), CLONING, budget.baseline),
        Panel("BC-MMD", bc_mmd.Config(), CLONING, budget.baseline),
    ]


def improving(budget: Budget, shifted: bool = False) -> list[Panel]:
    """The baselines of the second figure, by the labels of the authors' figure."""
    bcq = ql_cvae.Config(shifted=shifted)
    return [
        Panel("TD3+BC", ql_mle.Config(), REWARDED, budget.baseline),
        Panel("BCQ, shifted" if shifted else "BCQ", bcq, REWARDED, budget.baseline),
        Panel("BEAR-MMD", ql_mmd.Config(), REWARDED, budget.baseline),
    ]


def train(panel: Panel, seeds: Sequence[int], source: Source) -> Policy:
    """Trains one panel with every seed; returns the policies stacked over seeds.

    Raises:
      NonFiniteError: a metric is not finite.
    """
    mesh = distributed.member_mesh(len(seeds))
    dataset = distributed.put(source.dataset, distributed.replicated(mesh))
    agent = panel.make(panel.agent, source.agent_spec)
    state = members.make_init(panel.make, panel.agent, source.agent_spec, mesh)(
        distributed.put(_members(panel, seeds, 0.0), distributed.sharded(mesh))
    )
    chunks: dict[int, Callable] = {}
    for done in range(0, panel.updates, CHUNK):
        length = min(CHUNK, panel.updates - done)
        if length not in chunks:
            chunks[length] = members.make_chunk(
                panel.make, panel.agent, source.agent_spec, mesh, length
            )
        inputs = _members(panel, seeds, done / panel.updates)
        state, metrics = chunks[length](
            state, distributed.put(inputs, distributed.sharded(mesh)), dataset
        )
        bad = [name for name, v in metrics.items() if not np.isfinite(v).all()]
        if bad:
            raise NonFiniteError(
                f"{panel.title}: {bad[0]} is not finite by update {done + length}"
            )
    return jax.vmap(agent.policy)(state)


def _members(panel: Panel, seeds: Sequence[int], done: float) -> members.Members:
    """The members, with their learning rates when the share `done` of training is."""
    factor = 0.5 * (1.0 + math.cos(math.pi * done))
    rates = {
        SWEPT + name: factor * getattr(panel.agent, name)
        for name in ("lr", "critic_lr")
        if panel.annealed and hasattr(panel.agent, name)
    }
    return members.stacked([{"seed": seed, **rates} for seed in seeds])


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
    agent = panel.make(config, source.agent_spec)
    mesh = distributed.member_mesh(len(seeds))
    observation = np.zeros(source.agent_spec.observation_dim, np.float32)

    def draw(member: tuple[Policy, Any], observation: Any) -> Any:
        policy, keys = member
        act = jax.vmap(agent.act, in_axes=(None, None, None, 0))
        return act(policy, agent.reset(), observation, keys)[0]

    keys = acting.episode_keys(seeds, range(count))
    mapped = jax.jit(distributed.map_members(draw, mesh))
    inputs = distributed.put((policies, keys), distributed.sharded(mesh))
    return np.asarray(mapped(inputs, observation))


def actions(
    panel: Panel, seeds: Sequence[int], folder: Path, log: Log
) -> NDArray[np.float32]:
    """The panel's actions `[S, DRAWN, A]`: from `folder`, or else trained for.

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
            "annealed": panel.annealed,
            "seeds": list(seeds),
            "count": DRAWN,
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
    drawn = sample(panel, policies, seeds, source, DRAWN)
    seconds = time.monotonic() - start
    log(f"{panel.title}: {panel.updates} updates, {len(seeds)} seeds, {seconds:.0f} s")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, actions=drawn, settings=settings, seconds=seconds)
    temporary.replace(path)
    return drawn
