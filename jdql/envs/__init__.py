"""Environments that no package registers, one file each."""
