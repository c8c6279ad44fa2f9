"""One file per task, each with `get_config() -> Config`; its name is the config's."""
