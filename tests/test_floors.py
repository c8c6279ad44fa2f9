"""Imports go downward: no floor reaches up, and no folder reaches across its floor."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS = {
    "jdql.types": 0,
    "jdql.config": 0,
    "jdql.checks": 0,
    "jdql.diffusion": 1,
    "jdql.rl": 1,
    "jdql.networks": 1,
    "jdql.data": 1,
    "jdql.envs": 1,
    "jdql.references": 1,
    "jdql.optim": 1,
    "jdql.agents": 2,
    "jdql.runtime": 3,
    "jdql.collect": 3,
    "jdql.report": 3,
    "jdql": 4,  # jdql/__init__.py, the door
    "experiments": 5,
}
# A module of a floor's own that the others on it may use.
SHARED = {
    "jdql.agents.base",
    "jdql.agents.actors",
    "jdql.agents.critics",
    "jdql.agents.plan_lengths",
    "jdql.agents.plan_values",
    "jdql.agents.trajectories",
}
HEAVY = ("gymnasium", "minari", "mujoco", "orbax", "matplotlib", "h5py", "wandb")


def part_of(module: str) -> str | None:
    """The entry of FLOORS that a module belongs to; None for other packages."""
    names = module.split(".")
    if names[0] == "experiments":
        return "experiments"
    if names[0] != "jdql":
        return None
    part = ".".join(names[:2])
    return part if part in FLOORS or len(names) > 1 else "jdql"


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, package: bool) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    base = module.split(".") if package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = base[: len(base) - node.level + 1] if node.level else []
            source = ".".join([*up, *([node.module] if node.module else [])])
            # `from jdql.runtime import train` imports the module jdql.runtime.train
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def violations(root: Path) -> list[str]:
    """A line for each import that goes up or sideways."""
    wrong = []
    for path in sorted([*root.glob("jdql/**/*.py"), *root.glob("experiments/**/*.py")]):
        module = module_name(path, root)
        here = part_of(module)
        tree = ast.parse(path.read_text())
        for target in sorted(imports(tree, module, path.name == "__init__.py")):
            there = part_of(target)
            if there is None or there == here:
                if here == "jdql.agents" and not allowed_agent_import(module, target):
                    wrong.append(f"{module} imports another agent, {target}")
                continue
            for part in (here, there):
                if part not in FLOORS:
                    raise AssertionError(f"{part} has no floor: add it to FLOORS")
            if FLOORS[there] > FLOORS[here]:
                wrong.append(f"{module} imports {target}, which is above it")
            elif FLOORS[there] == FLOORS[here] and FLOORS[here] > 0:
                wrong.append(f"{module} imports {target}, which is beside it")
    return wrong


def allowed_agent_import(module: str, target: str) -> bool:
    """Agents use base.py and nothing else of their folder."""
    inside = target.startswith("jdql.agents.")
    return not inside or ".".join(target.split(".")[:3]) in {*SHARED, module}


def test_imports_go_downward():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "line", "message"),
    [
        ("jdql/rl/a.py", "from jdql.runtime import train", "above"),
        ("jdql/rl/a.py", "import jdql.networks.mlp", "beside"),
        ("jdql/rl/a.py", "def f():\n    from jdql.agents.base import Agent", "above"),
        ("jdql/rl/a.py", "from ..runtime import train", "above"),
        ("jdql/runtime/a.py", "from jdql.report import scores", "beside"),
        ("jdql/runtime/a.py", "from experiments import run", "above"),
        ("jdql/agents/a.py", "from jdql.agents.b import make", "another agent"),
        ("jdql/agents/a.py", "from jdql.agents import b", "another agent"),
        ("jdql/config.py", "import jdql.agents.diffusion_ql", "above"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, path, line, message):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n")
    found = violations(tmp_path)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("jdql/agents/a.py", "from jdql.agents.base import Agent\nimport jdql.rl.b"),
        ("jdql/runtime/a.py", "from jdql.runtime.b import c\nimport jdql.agents.base"),
        ("jdql/rl/a.py", "from jdql.rl.b import c\nfrom jdql.types import Array"),
        ("experiments/a.py", "from jdql.runtime import train\nimport numpy"),
    ],
)
def test_downward_imports_are_allowed(tmp_path, path, line):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n")
    assert violations(tmp_path) == []


def longest(path: Path) -> tuple[int, str]:
    """The lines of a file's longest function, its docstring aside, and its name."""
    lengths = [(0, "")]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = node.body[1:] if ast.get_docstring(node) else node.body
            head = node.body[0].lineno - node.lineno
            lines = own[-1].end_lineno - own[0].lineno + 1 if own else 0  # type: ignore[operator]
            lengths.append((head + lines, node.name))
    return max(lengths)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("jdql/**/*.py")), ids=lambda path: module_name(path, ROOT)
)
def test_functions_fit_on_a_screen(path):
    lines, name = longest(path)
    assert lines <= 50, name


def test_a_long_function_is_found(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('def f(x):\n    """Says."""\n' + "    x += 1\n" * 50)
    assert longest(file) == (51, "f")


def heavy_at_the_top(root: Path) -> list[str]:
    """Heavy packages that a file of jdql imports as it is imported itself."""
    wrong = []
    for path in sorted(root.glob("jdql/**/*.py")):
        tree = ast.parse(path.read_text())
        for node in tree.body:  # functions are not entered
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = module_name(path, root)
                for target in imports(ast.Module([node], []), module, False):
                    if target.split(".")[0] in HEAVY:
                        wrong.append(f"{module} imports {target}")
    return wrong


def test_heavy_packages_are_imported_where_they_are_used():
    found = heavy_at_the_top(ROOT)
    # Environments are classes of Gymnasium; only `eval.env_module` imports their files.
    environments = [
        line
        for line in found
        if line.startswith("jdql.envs.") and line.endswith("imports gymnasium")
    ]
    assert "jdql.envs.bandit imports gymnasium" in environments
    assert found == environments
