"""Faster code for local models, with equal scores, behind the option `speedups`."""
