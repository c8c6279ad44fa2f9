"""Training, evaluation, collection and checkpoints; knows no agent by name."""
