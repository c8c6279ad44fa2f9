"""Datasets of our own: behaviour policies play, Minari stores."""
