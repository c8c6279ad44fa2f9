"""The experiments of the papers, drawn by `experiments.figures`."""
