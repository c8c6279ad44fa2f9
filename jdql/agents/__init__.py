"""One file per system, each with a `Config` and a `make(config, spec)`."""
