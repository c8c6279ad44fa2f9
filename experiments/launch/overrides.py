"""The `--config.PATH=TEXT` half of a command line: found, typed and put in its place.

A text is read by the annotation of the dataclass field that the dotted path names.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable
from typing import Any, NamedTuple

from jdql.config import Config

_ARGUMENT = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]*)(=(?P<text>.*))?", re.S)
_BOOL = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Override(NamedTuple):
    """One `--config.PATH=TEXT`; TEXT is None where only the name was given."""

    path: str
    text: str | None


def split_overrides(argv: list[str]) -> tuple[list[str], list[Override]]:
    """Takes `--config.x=v`, `--config.x v`, `--config.x`, `--noconfig.x` out of argv.

    Returns:
      The other arguments, in order, and the overrides, in order.

    Raises:
      ValueError: `--noconfig.x` was given a value.
    """
    others, overrides, waiting = [], [], list(argv)
    while waiting:
        argument = waiting.pop(0)
        match = _ARGUMENT.fullmatch(argument)
        if not match:
            others.append(argument)
            continue
        path, text = match["path"], match["text"]
        if match["no"]:
            if text is not None:
                raise ValueError(f"{argument}: --noconfig.{path} takes no value")
            text = "false"
        elif text is None and waiting and not waiting[0].startswith("-"):
            text = waiting.pop(0)
        overrides.append(Override(path, text))
    return others, overrides


def nearest(word: str, known: Iterable[str]) -> str:
    """The entry of `known` most like `word`; the last dotted part counts as much."""

    def likeness(other: str) -> float:
        pairs = (word, other), (word.rpartition(".")[2], other.rpartition(".")[2])
        return sum(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)

    return max(known, key=likeness, default="")


def apply(config: Config, override: Override) -> Config:
    """Sets one field of a config.

    Raises:
      ValueError: no such field, a whole section, or a text that the field's type cannot
        read.  The message is one line and names the nearest field.
    """

    def descend(node: Any, path: list[str]) -> Any:
        head, rest = path[0], path[1:]
        if isinstance(node, dict):
            if rest or not head:
                raise ValueError(f"--config.{override.path}: no such setting")
            return {**node, head: _literal(override.text)}
        section = dataclasses.is_dataclass(node)
        hints = typing.get_type_hints(type(node)) if section else {}
        if head not in hints:
            known = nearest(override.path, _paths(config))
            raise ValueError(
                f"--config.{override.path}: there is no such setting; the nearest is "
                f"--config.{known}"
            )
        value = getattr(node, head)
        if rest:
            value = descend(value, rest)
        elif dataclasses.is_dataclass(value):
            fields = ", ".join(field.name for field in dataclasses.fields(value))
            raise ValueError(f"--config.{override.path} is a section: set {fields}")
        else:
            value = _parse(override, hints[head])
        return dataclasses.replace(node, **{head: value})

    return descend(config, override.path.split("."))


def _paths(config: Any, prefix: str = "") -> list[str]:
    """The dotted names of all settings."""
    paths = []
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        section = dataclasses.is_dataclass(value)
        paths += _paths(value, path + ".") if section else [path]
    return paths


def _parse(override: Override, hint: Any) -> Any:
    """Reads an override's text as `hint`."""
    if override.text is None and hint is not bool:
        raise ValueError(
            f"--config.{override.path} needs a value: --config.{override.path}=VALUE"
        )
    try:
        return parse("true" if override.text is None else override.text, hint)
    except ValueError as error:
        raise ValueError(f"--config.{override.path}={override.text}: {error}") from None


def parse(text: str, hint: Any) -> Any:
    """Reads a text by a type.

    Args:
      text: what stands after `=`.
      hint: bool, int, float, str, `X | None`, `tuple[X, ...]`, `tuple[X, Y]` or a
        Literal of strings.  Whole numbers may be written 1e6; tuples `a,b` or `(a, b)`.

    Returns:
      The value.

    Raises:
      ValueError: the text does not read as that type; the message says what would.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and text.lower() in ("none", "null"):
            return None
        return _first([a for a in arguments if a is not type(None)], text)
    if origin is typing.Literal:
        if text not in arguments:
            raise ValueError(f"expected one of {', '.join(map(str, arguments))}")
        return text
    if origin is tuple:
        return _tuple(text, arguments)
    if hint is bool:
        if text.lower() not in _BOOL:
            raise ValueError("expected true or false")
        return _BOOL[text.lower()]
    if hint is int:
        return _int(text)
    if hint is float:
        return _number(text)
    if hint is str:
        return text
    raise ValueError("this setting cannot be set on the command line")


def parse_sweep(text: str) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Reads `agent.eta=0.5,1,2;agent.lr=3e-4,1e-3` into names and their values.

    Raises:
      ValueError: an entry is not of this form, or a value is no finite number.
    """
    entries = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, _, values = entry.partition("=")
        try:
            numbers: tuple[float, ...] = parse(values, tuple[float, ...])
        except ValueError:
            numbers = ()
        if not numbers or not all(map(math.isfinite, numbers)):
            raise ValueError(
                f"--sweep: {entry!r} is not agent.FIELD=NUMBER,NUMBER,...; settings "
                "that are no numbers take a run for each value"
            )
        entries.append((name.strip(), numbers))
    return tuple(entries)


def _first(hints: list[Any], text: str) -> Any:
    """Reads text as the first of several types that it fits."""
    for hint in hints[:-1]:
        try:
            return parse(text, hint)
        except ValueError:
            continue
    return parse(text, hints[-1])


def _tuple(text: str, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    stripped = text.strip()
    if stripped[:1] in ("(", "[") and stripped[-1:] in (")", "]"):
        stripped = stripped[1:-1]
    parts = [part.strip().strip("'\"") for part in stripped.split(",")]
    parts = [part for part in parts if part]
    if hints[-1] is Ellipsis:
        hints = (hints[0],) * len(parts)
    if len(parts) != len(hints):
        raise ValueError(f"expected {len(hints)} values, separated by commas")
    return tuple(parse(part, hint) for part, hint in zip(parts, hints, strict=True))


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)  # 1e6
        if number.is_integer():
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise ValueError("expected a whole number")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("expected a number") from None


def _literal(text: str | None) -> Any:
    """A value of no declared type: a Python literal, or else the text itself."""
    names = {None: True, "true": True, "false": False, "none": None}
    if text is None or text.lower() in names:
        return names[text.lower() if text else None]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
