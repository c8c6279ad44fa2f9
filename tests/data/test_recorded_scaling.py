"""Scaling against the authors' own normalisers."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jdql.data import scaling
from tests.data.recordings import recorded

CLOSE = {"rtol": 2e-6, "atol": 2e-6}


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("centred", [True, False], ids=["offset1", "offset0"])
@pytest.mark.parametrize("file", recorded("dp_normalizer"))
def test_diffusion_policy(file, centred, array):
    r = np.load(file)
    tolerance = float(r["config/range_eps"])
    offset = f"offset{int(centred)}"
    sides = {
        "limits": scaling.limits(r["data"], centred=centred, tolerance=tolerance),
        "gaussian": scaling.gaussian(
            r["data"], ddof=1, centred=centred, tolerance=tolerance
        ),
    }
    for name, side in sides.items():
        prefix = f"{name}/{offset}"
        np.testing.assert_allclose(side.scale, r[f"{prefix}/scale"], rtol=1e-6)
        made = side.forward(array(r["x"]))
        np.testing.assert_allclose(made, r[f"{prefix}/normalized"], **CLOSE)
        back = side.inverse(array(r["nx"]))
        span = np.abs(r["data"]).max()
        np.testing.assert_allclose(
            back, r[f"{prefix}/unnormalized"], rtol=1e-6, atol=1e-6 * span
        )


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("file", recorded("diffuser_normalizers"))
def test_diffuser(file, array):
    r = np.load(file)
    sides = {
        "gaussian": scaling.gaussian(r["data"]),
        "limits": scaling.limits(r["data"]),
        "safe_limits": scaling.limits(r["data"]),  # no column is constant here
        "cdf": scaling.cdf(r["data"]),
    }
    span = np.abs(r["data"]).max()
    for name, side in sides.items():
        for values in ("x", "x_inside", "data"):
            np.testing.assert_allclose(
                side.forward(array(r[values])), r[f"{name}/normalize/{values}"], **CLOSE
            )
        for values in ("y", "y_inside"):
            # Their limits clip on the way back, which is an agent's clipping here.
            y = np.clip(r[values], -1, 1) if "limits" in name else r[values]
            np.testing.assert_allclose(
                side.inverse(array(y)),
                r[f"{name}/unnormalize/{values}"],
                rtol=1e-6,
                atol=2e-6 * span,
            )


@pytest.mark.parametrize("file", recorded("diffuser_normalizers"))
def test_the_knots_of_diffusers_distribution_function(file):
    r = np.load(file)
    side = scaling.cdf(r["data"])
    for column in range(r["data"].shape[1]):
        if f"cdf/quantiles/{column}" in r:
            quantiles = r[f"cdf/quantiles/{column}"]
            knots = side.knot[: len(quantiles), column]
            np.testing.assert_array_equal(knots, quantiles)
        if f"cdf/cumprob/{column}" in r:
            expected = 2 * r[f"cdf/cumprob/{column}"] - 1
            np.testing.assert_allclose(
                side.position[: len(expected), column], expected, atol=1e-6
            )


@pytest.mark.parametrize("file", recorded("diffuser_normalizers"))
def test_diffusers_safe_limits_of_a_constant_column(file):
    """They widen every column by 1 on either side, jdql shifts the constant one."""
    r = np.load(file)
    data, expected = r["constant/data"], r["constant/safe_limits/normalize/x"]
    constant = data.min(axis=0) == data.max(axis=0)
    assert constant.sum() == 1
    made = scaling.limits(data).forward(r["x"])
    np.testing.assert_allclose(made[:, constant], expected[:, constant], **CLOSE)
    widened = scaling.limits(np.concatenate([data - 1, data + 1]))
    np.testing.assert_allclose(widened.forward(r["x"]), expected, **CLOSE)
    exact = scaling.limits(data).forward(data)
    np.testing.assert_array_equal(exact[:, constant], 0)
    np.testing.assert_allclose(np.abs(exact[:, ~constant]).max(axis=0), 1, rtol=1e-6)


@pytest.mark.parametrize("file", recorded("synther_data"))
def test_synther(file):
    r = np.load(file)
    size = r["inputs"].shape[1]
    s, a = int(r["config/obs_dim"]), int(r["config/act_dim"])
    left = [s + a] if r["config/skip_reward_norm"] else []
    left += [size - 1] if r["config/modelled_terminals"] else []
    standard = functools.partial(scaling.gaussian, ddof=1, epsilon=1e-5)
    side = scaling.leave(standard(r["inputs"]), left)
    np.testing.assert_allclose(side.shift, r["normalizer/mean"], **CLOSE)
    np.testing.assert_allclose(1 / side.scale, r["normalizer/std"], rtol=1e-6)
    np.testing.assert_allclose(side.forward(r["inputs"]), r["normalized"], **CLOSE)
    back = side.inverse(r["normalized"])
    np.testing.assert_allclose(back, r["unnormalized"], rtol=1e-5, atol=1e-5)
    # Their limits: the maximum is raised by 1e-5, as by one more row.
    high = r["inputs"].max(axis=0, keepdims=True) + 1e-5
    side = scaling.limits(np.concatenate([r["inputs"], high]))
    made = side.forward(r["inputs"])
    np.testing.assert_allclose(made, r["minmax/normalized"], rtol=5e-6, atol=5e-6)
    back = side.inverse(r["minmax/normalized"])
    np.testing.assert_allclose(back, r["minmax/unnormalized"], rtol=1e-5, atol=1e-5)
