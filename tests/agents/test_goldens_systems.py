"""The numbers of other systems' authors: same parameters, batches and noise in.

A file of `goldens_systems` holds some updates of one system by its authors' own code,
every random draw included, and an action of the policy that came out.  `config/kind`
says of which system; all else is read from `config/*` as well.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import cep
from jdql.diffusion import guidance, process
from jdql.diffusion.chain import Chain
from tests.agents.programs import once
from tests.agents.recorded import compare, energy, files, planners, policies
from tests.agents.recorded.diffusions import DIFFUSIONS
from tests.agents.recorded.files import Arrays, Reader, data_spec, setting
from tests.agents.recorded.flows import FLOWS
from tests.agents.recorded.system import Models, System

SYSTEMS = {**FLOWS, **DIFFUSIONS}
FILES = files.files("goldens_systems", "JDQL_GOLDENS_SYSTEMS")
KINDS = {file: files.kind(file) for file in FILES}
NOT_BUILT = {
    "ldcq": "LDCQ",
    "polygrad": "PolyGRAD",
    "rrf": "relative rewards",
    "synther": "SynthER",
}


def reason(kind: str) -> str | None:
    """Why a file of this kind is not compared, if it is not."""
    if kind in SYSTEMS or kind == energy.KIND:
        return None
    if kind in policies.KINDS:
        return "compared in test_goldens_policies.py"
    if kind in policies.ELSEWHERE:
        return f"compared in {policies.ELSEWHERE[kind]}"
    if kind in planners.KINDS:
        return "compared in test_goldens_planners.py"
    if kind in planners.ELSEWHERE:
        return "compared in the tests of networks and of data"
    name = NOT_BUILT.get(kind.split("_")[0])
    return f"{name} is not built" if name else f"nothing here reads {kind!r}"


SKIPPED = {file: why for file in FILES if (why := reason(KINDS[file]))}
COMPARED = [file for file in FILES if KINDS[file] in SYSTEMS]
ENERGIES = [file for file in FILES if KINDS[file] == energy.KIND]

# Their names -> ours, of all kinds.
SETTINGS = {
    "batch": "batch_size",
    "n_timesteps": "diffusion_steps",
    "beta_schedule": "schedule",
}
METRICS = {f"grad_norm_{n}": f"{n}_grad_norm" for n in ("actor", "critic", "value")}
NOT_VALUES = ("draw/", "observation", "chosen")  # the last by a draw that is not stored


def config_of(system: System, arrays: Arrays) -> Any:
    """The settings of a file.  Where there is one rate, it is that of all networks."""
    renamed = {**SETTINGS, **system.renamed}
    theirs = files.names(arrays, "config/")
    given = {renamed.get(name, name): setting(arrays, name) for name in theirs}
    given = {"critic_lr": given["lr"], "ema_decay": 1 - given["tau"], **given}
    if given.get("grad_norm", 1.0) <= 0:
        given["grad_norm"] = None  # no clipping
    if given.get("eta_lr") == 0:
        given["eta_lr"] = None  # eta is fixed
    fields = {field.name for field in dataclasses.fields(system.module.Config)}
    return system.module.Config(**{n: v for n, v in given.items() if n in fields})


@functools.cache
def case(file: Path) -> tuple[Arrays, System, Any, Any]:
    """A file, its kind, the settings and the parts of the system."""
    arrays, system = files.load(file), SYSTEMS[KINDS[file]]
    config = config_of(system, arrays)
    if system.parts is None:
        return arrays, system, config, system.module.build(config, data_spec(arrays))
    return arrays, system, config, system.parts(arrays, config)


def state_of(system: System, parts: Any, arrays: Arrays, when: str) -> Any:
    """The state that a file holds; optimisers start from zero moments."""
    init = functools.partial(system.module.init, parts, data_spec(arrays))
    shapes = jax.eval_shape(init, jax.random.key(0))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    new = {
        field: getattr(state, field)._replace(params=params, average=average)
        for field, (params, average) in system.models(arrays, when).items()
    }
    for field, name in (("step", "first_step"), ("eta", "eta")):
        if field in state._fields and f"config/{name}" in arrays:
            value = setting(arrays, name)
            new[field] = jnp.asarray(value, getattr(state, field).dtype)
    chex.assert_trees_all_equal_shapes(state._replace(**new), state)
    return state._replace(**new)


def assert_same_metrics(system: System, arrays: Arrays, i: int, metrics: Any) -> None:
    stored = set(files.names(arrays, "metric/"))
    for name in sorted(stored.difference(system.left_out)):
        found, expected = metrics[METRICS.get(name, name)], arrays[f"metric/{name}"][i]
        compare.assert_close(found, expected, system.tolerance, f"{name}, update {i}")
    if f"label/{i:04}" in arrays:
        np.testing.assert_array_equal(metrics["label"], arrays[f"label/{i:04}"])


def assert_same_models(config: Any, state: Any, final: Models, updates: int) -> None:
    """Online networks together, and each average alone.

    A target that moved an update early would drown among the others.
    """
    online = {}
    for field, (params, average) in final.items():
        model, rate = getattr(state, field), config.critic_lr
        rate = config.lr if field == "actor" else rate
        online[field] = model.params, params, rate
        if average != ():
            alone = {f"average of {field}": (model.average, average, rate)}
            compare.assert_same_parameters(alone, updates)
    compare.assert_same_parameters(online, updates)


@pytest.mark.parametrize("file", files.parameters([*COMPARED, *SKIPPED], SKIPPED))
def test_training_agrees_with_the_authors(file):
    arrays, system, config, parts = case(file)
    state, reader = state_of(system, parts, arrays, "init"), Reader(arrays)

    @once
    def update(old, batch, draws):
        new, metrics = system.module.update_step(parts, old, batch, draws)
        return new, {**metrics, **system.more(parts, old, new, batch, draws)}

    updates = setting(arrays, "steps")
    for i in range(updates):
        draws = system.draws(reader, arrays, config)
        state, metrics = update(state, system.batch(arrays, i), draws)
        assert_same_metrics(system, arrays, i, metrics)
    reader.finish()
    assert_same_models(config, state, system.models(arrays, "final"), updates)


@pytest.mark.parametrize("file", files.parameters(COMPARED))
def test_acting_agrees_with_the_authors(file):
    arrays, system, config, parts = case(file)
    agent = system.module.make(config, data_spec(arrays))
    learned = agent.learned(state_of(system, parts, arrays, "final"))

    @once
    def act(learned):
        reader = Reader(arrays, "act/draw/")
        made = system.act(parts, learned, arrays, reader)
        reader.finish()
        return made

    made = act(learned)
    for name in files.names(arrays, "act/"):
        if not name.startswith(NOT_VALUES):
            expected = arrays[f"act/{name}"]
            found = np.reshape(made[name], expected.shape)
            compare.assert_close(found, expected, 5e-5, name)


# CEP, whose behaviour and whose times are data --------------------------------------


@pytest.mark.parametrize("file", files.parameters(ENERGIES))
def test_critics_and_energy_agree_with_the_authors(file):
    arrays, reader = files.load(file), Reader(files.load(file))
    updates = setting(arrays, "updates")
    state = None
    for i in range(updates):
        t = energy.times(arrays, reader)
        np.testing.assert_allclose(t, arrays[f"step/{i}/t"][:, 0], rtol=1e-6)
        parts = energy.parts_of(arrays, t)
        state = energy.state_of(arrays, "init", parts) if state is None else state
        draws = energy.draws_of(arrays, reader, i)
        update = once(functools.partial(cep.update_step, parts))
        state, metrics = update(state, energy.batch_of(arrays, i), draws)
        found, expected = metrics["energy_loss"], arrays["metric/qt_loss"][i]
        compare.assert_close(found, expected, 2e-6, f"energy loss, update {i}")
        judged = jnp.asarray(arrays["batch/observations"][i])
        q = cep.q_of_support(parts, state.critic.average, judged, draws.support)
        expected = arrays[f"step/{i}/energy"]
        compare.assert_close(q, expected, 2e-6, f"Q of the support, update {i}")
    reader.finish()
    final = energy.state_of(arrays, "final", parts)
    # The last bias of an energy has no gradient in exact arithmetic: Adam makes whole
    # steps of its rounding errors.
    last = f"Dense_{len(parts.config.energy_hidden)}"
    for one in (state, final):
        one.energy.params["params"]["body"][last]["bias"] = jnp.zeros(1)
    for name in ("critic", "energy"):
        mine, theirs = getattr(state, name), getattr(final, name)
        pairs = {name: (mine.params, theirs.params, parts.config.lr)}
        compare.assert_same_parameters(pairs, updates)
        if mine.average != ():
            pairs = {f"average of {name}": (mine.average, theirs.average, 1e-3)}
            compare.assert_same_parameters(pairs, updates)


@pytest.mark.parametrize("file", files.parameters(ENERGIES))
def test_guidance_by_the_energy_agrees_with_the_authors(file):
    """Their prediction of the noise, of a score that the file writes out."""
    arrays = files.load(file)
    x, t, seen = (
        jnp.asarray(arrays[f"guided/{n}"]) for n in ("x", "t", "observations")
    )
    W, V, u = (jnp.asarray(arrays[f"guided/toy_{n}"]) for n in "WVu")
    parts = energy.parts_of(arrays, np.asarray(t))
    levels, rows = parts.schedule, jnp.arange(len(t))
    network = energy.energy(arrays, "final/qt")

    def noise(x, i):  # - sigma times their score, -(x W + s V + t u) / sigma
        return x @ W + seen @ V + t[:, None] * u

    def energy_of(x, k):
        return parts.energy.apply(network, x, t, seen)

    chain = Chain(levels, np.arange(len(t)), lambda network: denoiser)
    denoiser = process.denoiser(levels, noise, process.EPSILON)
    guided = guidance.energy(energy_of, parts.config.guidance)(denoiser, chain)
    x0 = guided(x, rows)
    signal, sigma = (np.float32(c)[:, None] for c in (levels.signal, levels.noise))
    found = (x - signal * x0) / sigma
    compare.assert_close(found, arrays["guided/noise_prediction"], 2e-6, "noise")
