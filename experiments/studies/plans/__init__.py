"""What diffusion plans: trajectories, chunks of actions, and what is asked of them."""
