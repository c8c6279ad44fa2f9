"""The panels of the bandit's figures: what each trains, and the actions it draws."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import jdql
from experiments.launch.resolve import resolve
from experiments.studies.ablations import runs
from experiments.studies.bandit import bc_cvae, bc_mle, bc_mmd, ql_cvae, ql_mle, ql_mmd
from jdql.agents import diffusion_bc, diffusion_ql
from jdql.config import Config
from jdql.runtime import stored
from jdql.runtime.acting import episode_keys

DRAWN = 10_000  # actions of each seed, for the shares
EPISODES = 100  # of each seed, at the end of training
STEPS = (2, 5, 10, 50)  # diffusion steps shown; the authors' figures have the last
CLONING, REWARDED = "jdql.envs.bandit:cloning", "jdql.envs.bandit:dataset"

Log = Callable[[str], None]


class Panel(NamedTuple):
    """One trained method.

    Attributes:
      title: what stands above the panel.
      agent: settings of the method.
      data: the entry of `data.dataset`.
      updates: gradient steps.
    """

    title: str
    agent: Any
    data: str
    updates: int

    @property
    def slug(self) -> str:
        """The name of the panel's run."""
        words = re.findall(r"\w+", self.title.lower())
        return "_".join(words)


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


def diffusion_settings(steps: int, budget: Budget, updates: int) -> dict[str, Any]:
    """The authors' settings of the diffusion policies of their toy tasks."""
    return {
        "diffusion_steps": steps,
        "lr": budget.lr,
        "decay_steps": updates if budget.annealed else None,
        "batch_size": 100,
        "hidden": (128, 128, 128),
        "step_dim": 4,
        "grad_norm": None,
    }


def diffusion_cloning(steps: int, budget: Budget) -> Panel:
    """BC-Diffusion with a chain of `steps`."""
    settings = diffusion_settings(steps, budget, budget.cloning)
    agent = diffusion_bc.Config(**settings)
    return Panel(f"BC-Diffusion, T = {steps}", agent, CLONING, budget.cloning)


def diffusion_improving(steps: int, budget: Budget) -> Panel:
    """Diffusion-QL with a chain of `steps`, the gradient going through all of it.

    The authors' critic here regresses the immediate reward. Transitions that all end
    their episode, as the bandit's do, make that of the agent's own target.
    """
    settings = diffusion_settings(steps, budget, budget.improving)
    agent = diffusion_ql.Config(eta=2.5, critic_lr=budget.lr, **settings)
    return Panel(f"Diffusion-QL, T = {steps}", agent, REWARDED, budget.improving)


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


def config_of(panel: Panel, seeds: Sequence[int], folder: Path) -> Config:
    """The run of a panel: the task of the bandit with its method, data and size."""
    task = resolve("bandit")
    config = dataclasses.replace(
        task,
        name=panel.slug,
        agent=panel.agent,
        data=dataclasses.replace(task.data, dataset=(panel.data,)),
        seed=seeds[0],
    )
    config = runs.sized(config, panel.updates, seeds, ())
    log_every = min(config.train.log_every, panel.updates)
    train = dataclasses.replace(config.train, log_every=log_every)
    evaluation = dataclasses.replace(
        config.eval, every=panel.updates, episodes=EPISODES
    )
    return runs.placed(
        dataclasses.replace(config, train=train, eval=evaluation), folder
    )


def actions(
    panel: Panel, seeds: Sequence[int], folder: Path, log: Log
) -> NDArray[np.float32] | None:
    """The panel's actions `[S, DRAWN, A]`, trained for first where that is to be done.

    Returns:
      The actions; None where the user stopped the training.

    Raises:
      ValueError: the run's folder holds a run with other settings.
    """
    config = config_of(panel, seeds, folder)
    if not runs.trained(config, log):
        return None
    path = Path(config.run.dir) / f"actions-{DRAWN}.npy"
    if not path.is_file():
        drawn = np.stack([sample(Path(config.run.dir), seed, DRAWN) for seed in seeds])
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, drawn)
        temporary.replace(path)
    return np.load(path)


def sample(folder: Path, seed: int, count: int) -> NDArray[np.float32]:
    """Draws actions of a trained policy, `[count, A]`.

    Diffusion-QL draws from its actor alone, without choosing among candidates, as the
    authors' figure does.
    """
    own = stored.load(folder).agent
    settings = {"candidates": 1} if isinstance(own, diffusion_ql.Config) else {}
    policy = jdql.load(folder, seed=seed, **settings)
    acting = policy.acting
    assert acting is not None
    seen = jnp.zeros((acting.history, policy.spec.observation_dim))

    def act(key: Any) -> Any:
        return acting.act(policy.learned, acting.reset(), seen, key)[0][0]

    keys = episode_keys([seed], range(count))[0]
    return np.asarray(jax.jit(jax.vmap(act))(keys))
