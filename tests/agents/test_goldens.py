"""The authors' own numbers: same parameters, batches and noise in, same numbers out."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import diffusion_bc, diffusion_ql
from jdql.diffusion import reverse
from jdql.diffusion.schedules import BETAS
from jdql.rl.resampling import choice_probabilities
from jdql.rl.targets import clipped_double_q
from jdql.types import DataSpec, Transition


def golden_files() -> list[Path]:
    shared = Path(
        os.environ.get("JDQL_SHARED", Path(__file__).parents[2].parent / "shared")
    )
    folders = [
        shared / "goldens",
        *map(Path, filter(None, [os.getenv("JDQL_GOLDENS")])),
    ]
    return [file for folder in folders for file in sorted(folder.glob("*.npz"))]


def is_case(file: Path) -> bool:
    with np.load(file) as arrays:
        return "config/algo" in arrays.files


FILES = golden_files()
CASES = [file for file in FILES if is_case(file)]
TABLES = [file for file in FILES if not is_case(file)]


def parameters(arrays, only_if_absent: str = "goldens are not here"):
    return [pytest.param(a, id=a.stem) for a in arrays] or [
        pytest.param(None, marks=pytest.mark.skip(reason=only_if_absent))
    ]


def dense(arrays, name: str):
    return {
        "kernel": jnp.asarray(arrays[f"{name}.weight"].T),
        "bias": jnp.asarray(arrays[f"{name}.bias"]),
    }


def layers(arrays, prefix: str) -> list[str]:
    """Names of the layers below `prefix`, in the order of their numbers."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight$")
    found = {int(m[1]) for key in arrays.files if (m := pattern.match(key))}
    return [f"{prefix}.{index}" for index in sorted(found)]


def mlp(arrays, names: list[str]):
    return {f"Dense_{i}": dense(arrays, name) for i, name in enumerate(names)}


def actor_params(arrays, prefix: str):
    body = [*layers(arrays, f"{prefix}/model.mid_layer"), f"{prefix}/model.final_layer"]
    return {
        "params": {
            "step": mlp(arrays, layers(arrays, f"{prefix}/model.time_mlp")),
            "body": mlp(arrays, body),
        }
    }


def critic_params(arrays, prefix: str):
    heads = [mlp(arrays, layers(arrays, f"{prefix}/q{i}_model")) for i in (1, 2)]
    return {"params": {"q": jax.tree.map(lambda *heads: jnp.stack(heads), *heads)}}


class Reader:
    """Hands out a case's draws in the order in which they were made."""

    def __init__(self, arrays, prefix: str = "draw/"):
        keys = sorted(key for key in arrays.files if key.startswith(prefix))
        self.draws = iter([(key.rsplit("/", 1)[1], arrays[key]) for key in keys])

    def next(self, kind: str):
        found, value = next(self.draws)
        assert found == kind
        return jnp.asarray(value)

    def chain(self, steps: int) -> reverse.ChainDraws:
        start = self.next("normal")
        return reverse.ChainDraws(
            start, jnp.stack([self.next("normal") for _ in range(steps)])
        )


def setting(arrays, name: str):
    return arrays[f"config/{name}"].item()


def common(arrays) -> dict:
    hidden = len(layers(arrays, "init/actor/model.mid_layer"))
    width = arrays["init/actor/model.final_layer.weight"].shape[1]
    return dict(
        lr=setting(arrays, "lr"),
        batch_size=setting(arrays, "batch"),
        diffusion_steps=setting(arrays, "n_timesteps"),
        schedule=setting(arrays, "beta_schedule"),
        hidden=(width,) * hidden,
        step_dim=arrays["init/actor/model.time_mlp.1.weight"].shape[1],
    )


def ql_config(arrays) -> diffusion_ql.Config:
    grad_norm = setting(arrays, "grad_norm")
    return diffusion_ql.Config(
        **common(arrays),
        eta=setting(arrays, "eta"),
        grad_norm=grad_norm if grad_norm > 0 else None,
        max_q_backup=setting(arrays, "max_q_backup"),
        discount=setting(arrays, "discount"),
        tau=setting(arrays, "tau"),
        ema_every=setting(arrays, "update_ema_every"),
        ema_start=setting(arrays, "step_start_ema"),
    )


def data_spec(arrays) -> DataSpec:
    A = setting(arrays, "act_dim")
    return DataSpec(setting(arrays, "obs_dim"), A, (-1.0,) * A, (1.0,) * A)


def batch_at(arrays, i: int) -> Transition:
    column = {name: arrays[f"batch/{name}"][i] for name in ("rewards", "not_done")}
    return Transition(
        observation=jnp.asarray(arrays["batch/observations"][i]),
        action=jnp.asarray(arrays["batch/actions"][i]),
        reward=jnp.asarray(column["rewards"][:, 0]),
        discount=jnp.asarray(column["not_done"][:, 0]),
        next_observation=jnp.asarray(arrays["batch/next_observations"][i]),
    )


def ql_draws(reader: Reader, steps: int) -> diffusion_ql.Draws:
    return diffusion_ql.Draws(
        target=reader.chain(steps),
        k=reader.next("timestep").astype(jnp.int32),
        noise=reader.next("normal"),
        improvement=reader.chain(steps),
        coin=reader.next("coin"),
    )


def bc_draws(reader: Reader, steps: int) -> diffusion_bc.Draws:
    del steps
    return diffusion_bc.Draws(
        reader.next("timestep").astype(jnp.int32), reader.next("normal")
    )


def run_case(arrays):
    """Trains as the case says; returns the agent's parts, states and metrics."""
    is_ql = setting(arrays, "algo") == "ql"
    module = diffusion_ql if is_ql else diffusion_bc
    config = ql_config(arrays) if is_ql else diffusion_bc.Config(**common(arrays))
    agent = module.make(config, data_spec(arrays))
    state = agent.init(jax.random.key(0))._replace(
        actor=actor_params(arrays, "init/actor"),
        step=jnp.asarray(setting(arrays, "first_step"), jnp.int32),
    )
    if is_ql:
        state = state._replace(
            actor_ema=actor_params(arrays, "init/actor_ema"),
            critic=critic_params(arrays, "init/critic"),
            critic_target=critic_params(arrays, "init/critic_target"),
        )
    reader, rows = Reader(arrays), []
    read = ql_draws if is_ql else bc_draws
    update = jax.jit(agent.update_step)
    for i in range(setting(arrays, "steps")):
        draws = read(reader, config.diffusion_steps)
        state, metrics = update(state, batch_at(arrays, i), draws)
        rows.append(metrics)
    assert next(reader.draws, None) is None, "draws are left over"
    return config, state, rows


def compare_parameters(actual, expected, lr: float, steps: int, name: str):
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    error = np.concatenate([np.abs(np.asarray(a) - e).ravel() for a, e in pairs])
    assert np.mean(error > 2e-6) <= 1e-3, f"{name}: {np.mean(error > 2e-6):.2%} differ"
    assert error.max() <= 2 * lr * steps, f"{name}: {error.max()}"


@pytest.mark.parametrize("file", parameters(CASES))
def test_training_agrees_with_the_authors(file):
    arrays = np.load(file)
    config, state, rows = run_case(arrays)
    renamed = {
        "ql_loss": "q_loss",
        "grad_norm_critic": "critic_grad_norm",
        "grad_norm_actor": "actor_grad_norm",
    }
    stored = [key.split("/")[1] for key in arrays.files if key.startswith("metric/")]
    for name, i in itertools.product(stored, range(len(rows))):
        metric = renamed.get(name, name)
        if setting(arrays, "algo") == "bc" and metric != "bc_loss":
            continue  # there is no critic: the authors' code logs zeros
        np.testing.assert_allclose(
            rows[i][metric], arrays[f"metric/{name}"][i], rtol=2e-5, atol=2e-5
        )
    lrs = {"actor": config.lr, "actor_ema": config.lr}
    for part in ("actor", "actor_ema", "critic", "critic_target"):
        if not any(key.startswith(f"final/{part}/") for key in arrays.files):
            continue
        load = actor_params if part.startswith("actor") else critic_params
        expected = load(arrays, f"final/{part}")
        lr = lrs.get(part) or config.critic_lr
        compare_parameters(getattr(state, part), expected, lr, len(rows), part)


@pytest.mark.parametrize(
    "file", parameters([f for f in CASES if "act/actions" in np.load(f).files])
)
def test_acting_agrees_with_the_authors(file):
    arrays = np.load(file)
    config = ql_config(arrays)
    parts = diffusion_ql.build(config, data_spec(arrays))
    draws = Reader(arrays, "act/draw/").chain(config.diffusion_steps)
    count = len(arrays["act/actions"])
    observation = jnp.repeat(jnp.asarray(arrays["act/observation"]), count, axis=0)
    actions = parts.sample_action(
        actor_params(arrays, "final/actor"), observation, draws
    )
    q = clipped_double_q(
        parts.critic.apply(
            critic_params(arrays, "final/critic_target"), observation, actions
        )
    )
    np.testing.assert_allclose(actions, arrays["act/actions"], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(q, arrays["act/q_min"], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(
        choice_probabilities(q), arrays["act/probabilities"], rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("file", parameters(TABLES))
def test_schedules_agree_with_the_authors(file):
    arrays = np.load(file)
    for key in arrays.files:
        name, steps = key.split("/")
        np.testing.assert_allclose(
            BETAS[name](int(steps)), arrays[key], rtol=0, atol=1e-12
        )
