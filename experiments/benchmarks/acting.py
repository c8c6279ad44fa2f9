"""Decisions per second, and evaluations against the bare simulator."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from experiments.benchmarks.machine import Row, Settings, rounds
from experiments.benchmarks.training import WALKER2D, recipe_of, spec


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
        learned = agent.learned(jax.jit(agent.init)(jax.random.key(0)))

        @jax.jit
        def act(learned, observations, seed, acting=agent.acting):
            keys = jax.random.split(jax.random.key(seed), len(observations))
            return jax.vmap(lambda o, k: acting.act(learned, (), o[None], k)[0])(
                observations, keys
            )

        for batch in settings.batch:
            observations = jnp.zeros((batch, WALKER2D[0]))
            np.asarray(act(learned, observations, 0))
            calls: list[float] = []
            end = time.perf_counter() + 3.0
            while time.perf_counter() < end or len(calls) < 20:
                start = time.perf_counter()
                np.asarray(act(learned, observations, len(calls)))
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
    from jdql.runtime import distributed, evaluate, members, recipe

    mesh, system = distributed.member_mesh(seeds), recipe_of(diffusion_ql.Config())
    everyone = members.stacked(system.config, [{"seed": i} for i in range(seeds)])
    inputs = jax.device_put(everyone, distributed.sharded(mesh))
    state = members.make_init(system, mesh)(inputs)
    learned = members.make_learned(system, mesh)(state, inputs)
    limits = {"terminate_when_unhealthy": False, "max_episode_steps": STEPS}
    config = EvalConfig(env="Walker2d-v5", episodes=EPISODES, env_kwargs=limits)
    asked, played = [], []  # inputs of the policy, and its actions, step by step
    policy: Any = recipe.acting(system)
    with (
        contextlib.ExitStack() as opened,
        evaluate.Rollouts(policy, range(seeds), spec(), config, mesh=mesh) as rollouts,
    ):
        player = rollouts._player
        plan = player._plan

        def recording(*inputs):
            output = plan(*inputs)
            asked.append(inputs)
            played.append(np.asarray(output[0]).reshape(seeds * EPISODES, -1))
            return output

        player._plan = recording
        rollouts(learned)
        player._plan = plan

        def decide():
            for inputs in asked:
                np.asarray(plan(*inputs)[0])

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
            "whole": lambda: rollouts(learned).returns,
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
