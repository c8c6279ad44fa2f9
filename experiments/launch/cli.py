"""What the programs share: absl flags beside `--config.` overrides, and error lines.

A user's mistake is answered by one line on stderr and exit status 1.  A defect of this
program keeps its traceback, and JDQL_DEBUG=1 shows the traceback of a mistake as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from experiments.launch.overrides import Override, split_overrides

_OURS = ("jdql", "experiments")
_HELP = ("-h", "-help", "--help", "--helpshort", "--helpfull")

Define = Callable[[flags.FlagValues], Any]
Program = Callable[[flags.FlagValues, list[Override]], int]


def run(
    program: Program,
    define: Define,
    doc: str,
    argv: Sequence[str] | None = None,
    rest: str = "",
) -> int:
    """Reads a command line and runs a program with it.

    Args:
      program: takes the flags and the overrides; returns the exit status.
      define: defines the program's flags on the values that it is given.
      doc: the text above the flags in `--help`.
      argv: the arguments, without the program's name; None takes the process's own.
      rest: name of the list flag that takes the arguments without --; "" allows none.

    Returns:
      The exit status: the program's, 1 after a mistake, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    values = flags.FlagValues()
    define(values)
    values.set_gnu_getopt()  # options may follow the arguments without --
    try:
        if any(argument in _HELP for argument in arguments):
            print(f"{doc.rstrip()}\n\n{_flag_help(values)}", flush=True)
            return 0
        others, overrides = split_overrides(arguments)
        left = values(["", *others])[1:]
        if left and rest:
            values[rest].value = [*(values[rest].value or []), *left]
        elif left:
            raise ValueError(f"{left[0]!r} is no option: options begin with --")
        return program(values, overrides)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (flags.Error, ValueError, OSError) as error:
        if os.environ.get("JDQL_DEBUG") or not _is_mistake(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _is_mistake(error: BaseException) -> bool:
    """Whether an error is meant for the user: raised by this project or the system."""
    if isinstance(error, flags.Error | OSError):
        return True
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    # The running program is called __main__.
    return module.split(".")[0] in (*_OURS, "__main__")


def _flag_help(values: flags.FlagValues) -> str:
    """One line for each flag of the program, without those that absl adds."""
    own = [values[name] for name in values if name not in ("flagfile", "undefok")]
    width = max(len(flag.name) for flag in own)
    return "\n".join(f"  --{flag.name:<{width}}  {flag.help}" for flag in own)
