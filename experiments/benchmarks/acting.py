"""Decisions per second, and evaluations against the bare simulator."""

from __future__ import annotations

import contextlib
import time

from experiments.benchmarks.machine import Row, Settings, rounds
from experiments.benchmarks.training import WALKER2D, spec


def bench_act(settings: Settings, reference: Row) -> list[Row]:
    """Decisions per second of the acting policy, and the latency of one call."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jdql.agents import diffusion_ql

    del reference
    rows = []
    for steps in settings.steps:
        config = diffusion_ql.Config(diffusion_steps=steps)
        agent = diffusion_ql.make(config, spec())
        policy = agent.policy(jax.jit(agent.init)(jax.random.key(0)))

        @jax.jit
        def act(policy, observations, seed, agent=agent):
            keys = jax.random.split(jax.random.key(seed), len(observations))
            return jax.vmap(lambda o, k: agent.act(policy, (), o, k)[0])(
                observations, keys
            )

        for batch in settings.batch:
            observations = jnp.zeros((batch, WALKER2D[0]))
            np.asarray(act(policy, observations, 0))
            calls: list[float] = []
            end = time.perf_counter() + 3.0
            while time.perf_counter() < end or len(calls) < 20:
                start = time.perf_counter()
                np.asarray(act(policy, observations, len(calls)))
                calls.append(time.perf_counter() - start)
            rows.append(
                {
                    "mode": "act",
                    "states": batch,
                    "steps": steps,
                    "candidates": config.candidates,
                    "decisions_per_s": batch / float(np.median(calls)),
                    "median_ms": 1e3 * float(np.median(calls)),
                    "p99_ms": 1e3 * float(np.percentile(calls, 99)),
                }
            )
    return rows


def bench_eval(settings: Settings, reference: Row) -> list[Row]:
    """Wall time of an evaluation against the bare simulator plus the bare policy."""
    del reference
    return [_eval_row(seeds) for seeds in settings.seeds]


EPISODES, STEPS = 10, 100  # for each seed, all of the same length


def _eval_row(seeds: int) -> Row:
    """Plays one evaluation whole, then its decisions alone and its steps alone."""
    import jax
    import numpy as np

    from jdql.agents import diffusion_ql
    from jdql.config import EvalConfig
    from jdql.envs import simulator
    from jdql.runtime import distributed, evaluate

    agent = diffusion_ql.make(diffusion_ql.Config(), spec())
    keys = jax.vmap(jax.random.key)(np.arange(seeds))
    policies = jax.vmap(agent.policy)(jax.jit(jax.vmap(agent.init))(keys))
    limits = {"terminate_when_unhealthy": False, "max_episode_steps": STEPS}
    config = EvalConfig(env="Walker2d-v5", episodes=EPISODES, env_kwargs=limits)
    asked, played = [], []  # inputs of the policy, and its actions, step by step
    mesh = distributed.member_mesh(seeds)
    with (
        contextlib.ExitStack() as opened,
        evaluate.Rollouts(agent, range(seeds), spec(), config, mesh=mesh) as rollouts,
    ):
        act = rollouts._act

        def recording(*inputs):
            output = act(*inputs)
            asked.append(inputs)
            played.append(np.asarray(output[0]).reshape(seeds * EPISODES, -1))
            return output

        rollouts._act = recording
        rollouts(policies)
        rollouts._act = act

        def decide():
            for inputs in asked:
                np.asarray(act(*inputs)[0])

        environments = [simulator.make(config) for _ in range(seeds * EPISODES)]
        for environment in environments:
            opened.callback(environment.close)

        def simulate():
            for row, environment in enumerate(environments):
                member, episode = divmod(row, EPISODES)
                start = member * evaluate.SEED_STRIDE + episode
                environment.reset(seed=config.seed + start)
                for actions in played:
                    environment.step(actions[row])

        works = {
            "whole": lambda: rollouts(policies).returns,
            "policy": decide,
            "simulator": simulate,
        }
        taken = {name: np.array(times) for name, times in rounds(works).items()}
    ratio = taken["whole"] / (taken["policy"] + taken["simulator"])
    steps = seeds * EPISODES * STEPS
    return {
        "mode": "eval",
        "seeds": seeds,
        "env_steps": steps,
        "env_steps_per_s": steps / float(np.median(taken["whole"])),
        **{f"{name}_s": float(np.median(times)) for name, times in taken.items()},
        "whole_over_parts": float(np.median(ratio)),
        "range": [float(ratio.min()), float(ratio.max())],
    }
