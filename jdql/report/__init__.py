"""Scores and plots, made from run folders only."""
