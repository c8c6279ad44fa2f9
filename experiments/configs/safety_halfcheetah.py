"""What only safety_halfcheetah has: how its settings were chosen, and two variants.

    python -m experiments.run --config=safety_halfcheetah
    python -m experiments.run --config=diffusion_bc:safety_halfcheetah
    python -m experiments.run --config=safety_halfcheetah:held_out
    python -m experiments.run --config=safety_halfcheetah:cautious

The recordings keep only episodes without a step above the limit, whose price is 100 in
the simulator: a critic cannot know of it, and hoping for speed is punished.

How the settings are chosen, without the simulator: `held_out` trains on the first 14
episodes with every eta of `ETAS`, and

    python -m experiments.validate --run=RUN --episodes=14: --choose

measures the losses on the last four.  eta is the largest whose validation cloning loss
is within a standard error of the lowest.  Observations are standardised and the x
position is kept because the loss of cloning on those four is lowest so (6,000 updates,
one seed): 0.024, against 0.034 as recorded and 0.030 without x, which the recorded
policies saw.  That loss still falls at 20,000 updates; 6,000 is what two cores do soon.
The benchmark's own validation file is no measure of this: another policy recorded it,
whose actions the training policies do not take (0.40 on that file).
"""

from __future__ import annotations

import dataclasses

from jdql.config import Config

ETAS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


def held_out(config: Config) -> Config:
    """Eta is chosen on this: 14 of the 18 episodes, every eta if any, two seeds."""
    data = dataclasses.replace(config.data, episodes="0:14")
    sweep = (("agent.eta", ETAS),) if hasattr(config.agent, "eta") else ()
    return dataclasses.replace(config, seeds=2, data=data, sweep=sweep)


def cautious(config: Config) -> Config:
    """Rewards that make the fastest 5 % of the data's steps costly.

    This is knowledge that the data do not hold: that there is a limit on speed.
    """
    reward = "jdql.envs.safety_halfcheetah:cautious"
    data = dataclasses.replace(config.data, reward=reward)
    return dataclasses.replace(config, data=data)
