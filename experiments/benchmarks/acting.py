"""Decisions per second, and evaluations against the bare simulator."""

from __future__ import annotations

import time

from experiments.benchmarks.machine import BLOCKS, Row, Settings
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
    import jax
    import numpy as np

    from jdql.agents import diffusion_ql
    from jdql.config import EvalConfig
    from jdql.envs import simulator
    from jdql.runtime import distributed, evaluate

    del reference
    rows = []
    for seeds in settings.seeds:
        agent = diffusion_ql.make(diffusion_ql.Config(), spec())
        keys = jax.vmap(jax.random.key)(np.arange(seeds))
        policies = jax.vmap(agent.policy)(jax.jit(jax.vmap(agent.init))(keys))
        config = EvalConfig(
            env="Walker2d-v5",
            episodes=10,
            env_kwargs={"terminate_when_unhealthy": False, "max_episode_steps": 100},
        )
        mesh = distributed.member_mesh(seeds)
        with evaluate.Rollouts(
            agent, range(seeds), spec(), config, mesh=mesh
        ) as rollouts:
            rollouts(policies)
            recorded: list[tuple] = []
            act = rollouts._act

            def recording(*inputs, act=act, recorded=recorded):
                recorded.append(inputs)
                return act(*inputs)

            whole, policy_only, simulator_only = [], [], []
            rollouts._act = recording
            rollouts(policies)
            rollouts._act = act
            environments = [simulator.make(config) for _ in range(seeds * 10)]
            for _ in range(BLOCKS):
                start = time.perf_counter()
                result = rollouts(policies)
                whole.append(time.perf_counter() - start)
                start = time.perf_counter()
                for inputs in recorded:
                    np.asarray(act(*inputs)[0])
                policy_only.append(time.perf_counter() - start)
                start = time.perf_counter()
                for environment in environments:
                    environment.reset(seed=0)
                    action = environment.action_space.sample()
                    for _ in range(100):
                        environment.step(action)
                simulator_only.append(time.perf_counter() - start)
        count = int(result.lengths.sum())
        ratio = np.array(whole) / (np.array(policy_only) + np.array(simulator_only))
        rows.append(
            {
                "mode": "eval",
                "seeds": seeds,
                "env_steps": count,
                "env_steps_per_s": count / float(np.median(whole)),
                "simulator_s": float(np.median(simulator_only)),
                "policy_s": float(np.median(policy_only)),
                "whole_s": float(np.median(whole)),
                "whole_over_parts": float(np.median(ratio)),
            }
        )
    return rows
