"""What `experiments.bench` measures, one file for each kind."""
