"""Numbers recorded from the authors' own code, by the kind of what a file holds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def recorded(*kinds: str):
    """A parameter for every file of these kinds; one that skips where there is none.

    They lie in `goldens_systems` of the shared folder and in $JDQL_GOLDENS_SYSTEMS.
    """
    shared = Path(os.environ.get("JDQL_SHARED", ROOT.parent / "shared"))
    extra = os.environ.get("JDQL_GOLDENS_SYSTEMS")
    folders = [shared / "goldens_systems", *([Path(extra)] if extra else [])]
    files = [f for folder in folders for f in sorted(folder.glob("*.npz"))]
    return [pytest.param(f, id=f.stem) for f in files if _kind(f) in kinds] or [
        pytest.param(None, marks=pytest.mark.skip(reason="no recorded numbers here"))
    ]


def _kind(file: Path) -> str:
    with np.load(file) as arrays:
        return str(arrays["config/kind"]) if "config/kind" in arrays.files else ""
