"""Noising, denoising losses and reverse chains: no networks, no RL."""
