"""Diffusion: noising, losses and reverse chains.  No networks, no reinforcement learning."""
