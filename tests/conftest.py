"""What every test gets: two devices, no stray files, no network, cached programs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "xla-cache"
# `-m quick`: folders and files of tests that need no training.
QUICK = {"diffusion", "rl", "report", "test_floors.py", "test_optim.py"}

# Before JAX is imported: two CPU devices, so that sharding is in every test's way, and
# what `distributed.configure` sets, so that programs that tests start compute the same.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false "
    "--xla_cpu_prefer_vector_width=512",
)
os.environ["HF_HUB_OFFLINE"] = "1"
# Programs that tests start find the packages without an installation.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
)


def pytest_configure() -> None:
    """Settles JAX before any test module is imported."""
    _keep_programs()


def _keep_programs() -> None:
    """Keeps every compiled program on disk, for the tests of both processes."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the quick lane."""
    for item in items:
        if item.path.relative_to(ROOT / "tests").parts[0] in QUICK:
            item.add_marker(pytest.mark.quick)


class _Together(LoadScopeScheduling):
    """Tests that share compiled programs run in one process: those of a file.

    The contract's are as long as many files: those of a system go together.  Launches
    share nothing.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        if file.endswith("test_contract.py"):
            return file + test.partition("[")[2]
        return nodeid if file.endswith("test_run.py") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """What `--dist=loadgroup` is for; it needs a pytest before 9.2, as of xdist 3.8."""
    return _Together(config, log)


@pytest.fixture(scope="session", autouse=True)
def _datasets(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Minari's folder of datasets is empty and goes when the tests are over."""
    os.environ["MINARI_DATASETS_PATH"] = str(tmp_path_factory.mktemp("minari"))


@pytest.fixture(scope="module", autouse=True)
def _programs() -> Iterator[None]:
    """Compiled programs go with the file of tests that used them.

    XLA maps memory for each one; a process that keeps thousands of them meets the
    kernel's limit of mappings, and crashes in the compiler.
    """
    _keep_programs()  # a test may have settled the devices as the launcher does
    yield
    import jax

    jax.clear_caches()


@contextlib.contextmanager
def _unoptimised() -> Iterator[None]:
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def unoptimised() -> Iterator[None]:
    """For programs that are gone after a few updates: they compile in half the time."""
    with _unoptimised():
        yield


@pytest.fixture(scope="module")
def all_unoptimised() -> Iterator[None]:
    """The same for all of a file, and for what its tests share."""
    with _unoptimised():
        yield


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own: MuJoCo writes a log into the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded numbers and real data, where there is one."""
    folder = Path(os.environ.get("JDQL_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder.name!r} beside the repository (JDQL_SHARED)")
    return folder
