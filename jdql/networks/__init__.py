"""Flax modules: layers and their initialisation, no losses."""
