"""A backend and an optimizer that lmaas_tune finds by their names."""
