"""Datasets: readers, checks, reward transforms and sampling."""
