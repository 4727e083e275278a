"""How calls are made to a backend: one chain of wrappers, and the budget that limits them."""
