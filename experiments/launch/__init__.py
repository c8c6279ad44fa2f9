"""What a command line needs: names and overrides to a config, run folders."""
