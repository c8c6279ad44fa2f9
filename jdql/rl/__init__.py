"""Reinforcement-learning mathematics as pure functions of arrays."""
