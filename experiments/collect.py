r"""Makes jdql's own datasets for a config, without training on them.

    python -m experiments.collect --config=walker2d_medium
    python -m experiments.collect --config=hopper_medium --seed=1
    python -m experiments.collect --config=walker2d_medium \
        --config.data.collect_steps=50000

The bundled behaviour policy plays the real environment in parallel processes; the
result is a Minari dataset, `jdql/walker2d/medium-v0`, in Minari's folder of datasets
($MINARI_DATASETS_PATH or ~/.minari/datasets).  Another size or seed is named in the id.
Training does the same by itself where Minari's dataset cannot be had.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jdql.config import Config


def collect_for(config: Config, seed: int = 0) -> list[str]:
    r"""Makes jdql's own dataset for every Minari id of a config; returns their ids.

    Raises:
      ValueError: the config names no Minari id, or one that jdql has no policy for.
    """
    from jdql.collect.collect import collect
    from jdql.data import minari

    wanted = [entry for entry in config.data.dataset if minari.is_id(entry)]
    if not wanted:
        raise ValueError(
            f"config '{config.name}' needs no collecting: it reads "
            f"{', '.join(config.data.dataset) or 'no data'}"
        )
    return [collect(entry, config.data.collect_steps, seed) for entry in wanted]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.collect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, help="a task, perhaps with variants, or a file"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the collection")

    from experiments.launch.overrides import split_overrides
    from experiments.launch.resolve import resolve

    try:
        others, overrides = split_overrides(
            list(sys.argv[1:] if argv is None else argv)
        )
        args = parser.parse_args(others)
        collect_for(resolve(args.config, overrides), args.seed)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was stored", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
