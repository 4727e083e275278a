"""Experiments of many runs: comparisons of optimizers, the paper's table, baselines.

Nothing outside imports this package but the command line.
"""
