"""Diffusion-QL on the paper's two-dimensional bandit, which needs no download.

    python -m experiments.run --config=bandit

Dataset: 10,000 actions from four Gaussians at (+-0.8, +-0.8), made on the spot, with
  mean rewards 3.0, 0.0, 1.5 and 5.0; the best is the lower right one.
Expect: the policy keeps to the lower right mode: a return near 5, a score near 100 on a
  scale of jdql's own.  The paper shows this as a picture, without a number.
Time: 100,000 updates of a chain of 50 steps; the quick variant takes minutes.
"""

from __future__ import annotations

from jdql.agents import diffusion_ql
from jdql.config import Config, DataConfig, EvalConfig, TrainConfig


def get_config() -> Config:
    """The authors' settings for their toy tasks."""
    agent = diffusion_ql.Config(
        eta=2.5,
        lr=3e-4,
        grad_norm=None,
        batch_size=100,
        diffusion_steps=50,
        hidden=(128, 128, 128),
        step_dim=4,
    )
    return Config(
        name="bandit",
        agent=agent,
        data=DataConfig(dataset=("jdql.envs.bandit:dataset",)),
        train=TrainConfig(steps=100_000),
        eval=EvalConfig(
            env="jdql/Bandit-v0",
            env_module="jdql.envs.bandit",
            every=10_000,
            episodes=100,
            reference="bandit",
        ),
    )
