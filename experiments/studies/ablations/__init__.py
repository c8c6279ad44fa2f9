"""What one setting does, from runs that differ in nothing else."""
