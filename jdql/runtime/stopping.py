"""Ctrl-C and SIGTERM as a flag that the run loop reads."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


class Stopped(Exception):
    """The user asked the run to stop."""


@contextlib.contextmanager
def signals(log: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Turns the first SIGINT or SIGTERM into a flag; yields the flag's reader.

    A second signal raises KeyboardInterrupt.
    """
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        log("stopping: saving a checkpoint (once more to stop at once)")

    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield lambda: bool(received)
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
