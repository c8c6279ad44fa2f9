"""The benchmark of the policy's update: it measures what the agents compute."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.benchmarks import policy
from experiments.benchmarks.training import spec
from jdql.agents import diffusion_ql, edp


@pytest.mark.usefixtures("unoptimised")
@pytest.mark.parametrize("name", ["diffusion_ql", "edp"])
def test_the_loss_is_the_agent_s(name):
    """On the critics that the agent judges by: updated already, or not yet."""
    module = {"diffusion_ql": diffusion_ql, "edp": edp}[name]
    settings = {"schedule": "vp"}  # of both, so that few steps will do
    config = module.Config(diffusion_steps=2, batch_size=4, **settings)
    agent = module.make(config, spec())
    case = getattr(policy, f"{name}_policy")(2, 4)
    batch = policy.synthetic_batch(4)

    @jax.jit
    def both(state):
        draws = agent.draw(jax.random.key(0))  # those of the case, target included
        after, metrics = agent.update_step(state, batch, draws)
        judge = after if name == "diffusion_ql" else state
        loss, parts = case.loss(state.actor.params, judge, batch, case.draws)
        return metrics["actor_loss"], loss, metrics["bc_loss"], parts["bc_loss"]

    agents_loss, loss, agents_cloning, cloning = both(case.state)
    np.testing.assert_allclose(loss, agents_loss, rtol=1e-4)
    np.testing.assert_allclose(cloning, agents_cloning, rtol=1e-4)


@pytest.mark.usefixtures("unoptimised")
def test_a_row_compares_the_two():
    row = policy.policy_row("float32", 4, 2, seconds=0.0)
    assert (row["mode"], row["steps"], row["batch"]) == ("policy", 2, 4)
    assert row["edp_ms"] > 0
    assert row["range"][0] <= row["ratio"] <= row["range"][1]
