"""The paper's claims about the bandit, at a size of seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.studies.bandit import bc_mle, panels, ql_mle
from experiments.studies.bandit.panels import Budget, Panel
from jdql.envs.bandit import mode_shares
from jdql.runtime import distributed

SMALL = Budget(1_000, 5_000, 5_000, lr=3e-3, annealed=True)
BEST = 3  # right bottom, reward 5


@pytest.fixture(autouse=True)
def _one_backend(monkeypatch) -> None:
    """The devices are settled already."""
    monkeypatch.setattr(distributed, "configure", lambda *_, **__: None)


def shares(panel: Panel) -> np.ndarray:
    """Shares of the modes, [4], after training with seed 0."""
    drawn = panels.actions(panel, [0], Path("runs"), log=lambda line: None)
    return mode_shares(drawn[0])


def test_only_the_diffusion_policy_clones_every_mode() -> None:
    diffusion = shares(panels.diffusion_cloning(50, SMALL))
    assert (np.abs(diffusion - 0.25) <= 0.07).all(), diffusion
    gaussian = shares(Panel("BC-MLE", bc_mle.Config(), panels.CLONING, SMALL.baseline))
    assert (gaussian < 0.05).all(), gaussian


def test_only_diffusion_ql_keeps_to_the_best_mode() -> None:
    diffusion = shares(panels.diffusion_improving(5, SMALL))
    assert diffusion[BEST] > 0.75, diffusion
    gaussian = shares(Panel("TD3+BC", ql_mle.Config(), panels.REWARDED, SMALL.baseline))
    assert gaussian[BEST] < 0.5, gaussian
