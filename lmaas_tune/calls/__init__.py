"""Calls to a backend: the chain of cache, retries, pace and meter, and the budget."""
