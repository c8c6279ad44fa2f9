"""Command-line programs: `python -m experiments.run --help`."""
