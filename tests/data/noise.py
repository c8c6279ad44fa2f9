"""A small dataset by the name of a function, and a reward transform."""

from __future__ import annotations

import numpy as np

from jdql.config import DataConfig

ID = "tests.data.noise:noise"
CONFIG = DataConfig(dataset=(ID,))


def noise() -> dict[str, np.ndarray]:
    """Observations far from mean 0 and deviation 1, in eight episodes of five."""
    g = np.random.default_rng(0)
    n = 40
    return {
        "observations": g.normal([50, 0, 2], [30, 0.1, 0], (n, 3)),
        "next_observations": g.normal([51, 0, 2], [30, 0.1, 0], (n, 3)),
        "actions": g.uniform(-1, 1, (n, 2)),
        "rewards": g.normal(size=n),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(1, n + 1) % 5 == 0,
        "action_low": np.full(2, -1.5),
        "action_high": np.full(2, 1.1),
    }


def beyond_the_best(dataset, training):
    """A transform: rewards above the largest of the training data."""
    return dataset._replace(reward=dataset.reward - training.reward.max())


def of_one(dataset):
    """No transform: it lacks the training data."""
    return dataset


def quiet(line: str) -> None:
    """Takes the lines of a log."""
