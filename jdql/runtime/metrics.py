"""A run's record: metrics and evaluations, one row per (step, seed), on disk always.

    metrics.jsonl      step, seed, swept settings, then one column per metric
    metrics.csv        the same table, made from the JSON lines
    evaluations.jsonl   per-episode returns, lengths, peak rewards, successes and scores
    measurements.jsonl  held-out numbers of a system, where it has any

TensorBoard and Weights & Biases get the same numbers where they are asked for.  JSON
has no word for a non-finite number: it is written as null.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jdql.config import SWEPT

Row = dict[str, Any]
Sink = Callable[[int, Mapping[str, float]], None]  # (step, {"loss/seed0": ...})


def read_rows(path: str | os.PathLike) -> list[Row]:
    """Reads a file of JSON lines; a last line cut short by a crash is left out.

    Returns:
      The rows in file order; none where there is no such file.

    Raises:
      ValueError: a line other than the last is not JSON.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # complete lines end in \n
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not JSON ({error.msg})"
            ) from error
    return rows


def evaluation_rows(
    step: int,
    members: Sequence[Row],
    result: Any,
    scores: ArrayLike | None,
    *,
    dataset: str,
    env: str,
    **labels: Any,
) -> list[Row]:
    """The rows of `evaluations.jsonl` of one evaluation.

    Args:
      step: updates done.
      members: the S members, each its `seed` and swept settings.
      result: `returns`, `lengths`, `peaks` and `successes` of all episodes, (S, E), as
        `jdql.runtime.evaluate.Evaluation` has them.
      scores: what the episodes score, (S, E), or None without a score.
      dataset: id of the dataset that was really trained on.
      env: Gymnasium id.
      **labels: what else identifies the numbers, such as `versions` and `reference`.

    Returns:
      One row per member, with per-episode lists and their means; a success that the
      environment does not report is None.
    """
    columns = {name: np.asarray(values) for name, values in _columns(result, scores)}
    return [
        {
            "step": int(step),
            **member,
            "dataset": dataset,
            "env": env,
            **{f"{one}_mean": _mean(columns.get(many), i) for one, many in _NAMES},
            **{many: _listed(columns.get(many), i) for _, many in _NAMES},
            **labels,
        }
        for i, member in enumerate(members)
    ]


_NAMES = (
    ("return", "returns"),
    ("length", "lengths"),
    ("score", "scores"),
    ("peak", "peaks"),
    ("success", "successes"),
)


def _columns(result: Any, scores: ArrayLike | None) -> Iterator[tuple[str, Any]]:
    yield from zip(("returns", "lengths", "peaks"), result[:3], strict=True)
    if scores is not None:
        yield "scores", scores
    if not np.isnan(result.successes).all():
        yield "successes", result.successes


def _mean(values: NDArray | None, i: int) -> float | None:
    return None if values is None else float(values[i].mean())


def _listed(values: NDArray | None, i: int) -> list | None:
    return None if values is None else values[i].tolist()


def measurement_rows(
    step: int, members: Sequence[Row], values: Mapping[str, ArrayLike], **labels: Any
) -> list[Row]:
    """The rows of `measurements.jsonl`: held-out numbers of a system.

    Args:
      step: updates done.
      members: the S members, each its `seed` and swept settings.
      values: arrays (S,) by name.
      **labels: what they were measured on.
    """
    columns = {name: np.asarray(value) for name, value in values.items()}
    return [
        {
            "step": int(step),
            **member,
            **{name: float(column[i]) for name, column in columns.items()},
            **labels,
        }
        for i, member in enumerate(members)
    ]


class Writer:
    """Writes a run's record as it happens; use it as a context manager.

    Rows already there with `step` above `resume_step` are dropped, in one atomic rename
    per file, so that a resumed run leaves the record of an unbroken one.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        resume_step: int | None = None,
        tensorboard: bool = False,
        wandb: bool = False,
        name: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens the record.

        Args:
          directory: the run folder, made if it is not there.
          resume_step: updates done so far; None starts the record anew.
          tensorboard: also write event files, to `directory/tensorboard`.
          wandb: also send to Weights & Biases; `WANDB_MODE=offline` is honoured.
          name: the run's name there.
          config: the run's settings there.

        Raises:
          ValueError: a package that was asked for is not installed.
        """
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        keep = -1 if resume_step is None else resume_step
        for file in ("metrics.jsonl", "evaluations.jsonl", "measurements.jsonl"):
            _keep_up_to(self._directory / file, keep)
        self._columns = _write_csv(self._directory)
        self._sinks: list[tuple[Sink, Callable[[], None]]] = []
        if tensorboard:
            self._sinks.append(_tensorboard(self._directory, keep))
        if wandb:
            self._sinks.append(_wandb(self._directory, name, config or {}))

    def metrics(
        self, step: int, members: Sequence[Row], values: Mapping[str, ArrayLike]
    ) -> None:
        """Records the training metrics of one moment.

        Args:
          step: updates done.
          members: the S members, each its `seed` and swept settings.
          values: arrays (S,) by metric name.
        """
        rows = measurement_rows(step, members, values)
        _append(self._directory / "metrics.jsonl", rows)
        if set(rows[0]) <= set(self._columns):
            _append_csv(self._directory / "metrics.csv", self._columns, rows)
        else:  # the first row, or a metric that was not there before
            self._columns = _write_csv(self._directory)
        self._send(rows, values)

    def evaluation(self, rows: Sequence[Row]) -> None:
        """Records one evaluation, as made by `evaluation_rows`."""
        _append(self._directory / "evaluations.jsonl", rows)
        names = [f"{name}_mean" for name, _ in _NAMES]
        shown = [name for name in names if all(r[name] is not None for r in rows)]
        self._send_as("evaluation", rows, shown)

    def measurement(self, rows: Sequence[Row]) -> None:
        """Records one set of held-out numbers, as made by `measurement_rows`."""
        _append(self._directory / "measurements.jsonl", rows)
        numbers = [n for n, v in rows[0].items() if isinstance(v, float)]
        shown = [name for name in numbers if not name.startswith(SWEPT)]
        self._send_as("measurement", rows, shown)

    def _send_as(self, kind: str, rows: Sequence[Row], names: Sequence[str]) -> None:
        """Hands these columns of the rows on, under names that tell their kind."""
        short = [
            {"step": r["step"], "seed": r["seed"]}
            | {name: r[name] for name in r if name.startswith(SWEPT)}
            | {f"{kind}/{name}": r[name] for name in names}
            for r in rows
        ]
        self._send(short, [f"{kind}/{name}" for name in names])

    def _send(self, rows: Sequence[Row], names: Iterable[str]) -> None:
        """Hands each seed's numbers, and their mean, to TensorBoard and W&B."""
        if not rows or not self._sinks:
            return
        scalars: dict[str, float] = {}
        for group, members in _groups(rows).items():
            for name in names:
                path = f"{name}{group}"
                scalars |= {f"{path}/seed{row['seed']}": row[name] for row in members}
                mean = np.mean([row[name] for row in members])
                scalars[f"{path}/mean"] = float(mean)
        for send, _ in self._sinks:
            send(rows[0]["step"], scalars)

    def close(self) -> None:
        """Finishes what TensorBoard and W&B still hold; the files need nothing."""
        for _, finish in self._sinks:
            finish()
        self._sinks = []

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of equal swept settings, by a name: "" where nothing was swept."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        swept = [f"/{name}={row[name]:g}" for name in row if name.startswith(SWEPT)]
        groups.setdefault("".join(swept), []).append(row)
    return groups


def _strict(value: Any) -> Any:
    """The value with non-finite numbers as None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _json_lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(_strict(row), allow_nan=False) + "\n" for row in rows)


def _append(path: Path, rows: Iterable[Row]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(_json_lines(rows))


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _keep_up_to(path: Path, step: int) -> None:
    """Drops the rows of later steps, and a half-written last line."""
    if path.exists():
        _replace(path, _json_lines(r for r in read_rows(path) if r["step"] <= step))


def _csv_text(columns: Sequence[str], rows: Iterable[Row], header: bool) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(_strict(row) for row in rows)
    return buffer.getvalue()


def _append_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(_csv_text(columns, rows, header=False))


def _write_csv(directory: Path) -> list[str]:
    """Makes metrics.csv from the JSON lines; returns its columns, oldest first."""
    rows = read_rows(directory / "metrics.jsonl")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if rows or (directory / "metrics.csv").exists():
        _replace(directory / "metrics.csv", _csv_text(columns, rows, header=bool(rows)))
    return columns


def _tensorboard(directory: Path, resume_step: int) -> tuple[Sink, Callable[[], None]]:
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise ValueError(_missing("TensorBoard", "tensorboard")) from error
    # Events above the resumed step are from the broken run: readers hide them.
    writer = SummaryWriter(
        str(directory / "tensorboard"),
        purge_step=resume_step + 1 if resume_step >= 0 else None,
    )

    def send(step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return send, writer.close


def _wandb(
    directory: Path, name: str, config: Mapping[str, Any]
) -> tuple[Sink, Callable[[], None]]:
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ValueError(_missing("Weights & Biases", "wandb")) from error
    identity = directory / "wandb_id.txt"  # a resumed run continues the same curve
    if not identity.exists():
        identity.write_text(uuid.uuid4().hex[:12] + "\n", encoding="utf-8")
    run = wandb.init(
        project="jdql",
        id=identity.read_text(encoding="utf-8").strip(),
        name=name or None,
        dir=str(directory),
        config=dict(config),
        resume="allow",
    )
    return lambda step, scalars: run.log({**scalars, "step": step}), run.finish


def _missing(what: str, extra: str) -> str:
    return f"{what} is not installed: run pip install 'jdql[{extra}]', or turn it off"
