"""What acting takes in the systems that plan, and evaluations against their parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from experiments.benchmarks import policies
from experiments.benchmarks.machine import Row, Settings, rounds
from experiments.benchmarks.planning import Taken, time_plans
from experiments.benchmarks.training import recipe_of, spec


def bench_act(settings: Settings, reference: Row) -> list[Row]:
    """Plans and decisions per second, and the latency of a plan.

    The ways in which a system acts take turns, so that ratios between its rows are good
    where absolute numbers depend on who else uses the machine.
    """
    del reference
    cases = policies.chosen(settings.agents, settings.steps)
    return [
        row
        for case in cases
        for states in settings.states
        for row in act_rows(case, settings.size, states)
    ]


def act_rows(
    case: policies.Case, size: str, states: int, seconds: float = 3.0
) -> Iterator[Row]:
    """A row for each way of acting of a system; see `planning.Taken` for the columns.

    `evaluations` are those of the denoiser, of one trajectory each, in one plan: steps
    of the chain, times candidates, times 2 where it is asked with and without its
    condition.  Critics, and gradients that guide, are not counted.
    """
    made = policies.make(case, size)
    timed = time_plans(
        {name: (policy.acting, policy.learned) for name, policy in made.items()},
        next(iter(made.values())).recipe.spec,
        states,
        seconds,
    )
    for name, policy in made.items():
        yield _act_row(case, policy, timed[name], states)


def _act_row(
    case: policies.Case, policy: policies.Policy, taken: Taken, states: int
) -> Row:
    chain = policies.chain(policy.recipe)
    candidates = getattr(policy.recipe.config, "candidates", 1)
    per_plan = chain and chain.calls * candidates * case.branches
    return {
        "mode": "act",
        "system": case.config,
        "sampler": chain and chain.sampler,
        "steps": chain and chain.calls,
        "candidates": candidates,
        "evaluations": per_plan,
        "states": states,
        **taken._asdict(),
    }


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
