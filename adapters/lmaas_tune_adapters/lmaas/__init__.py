"""The client of our own service, which `lmaas-tune serve` runs."""

from lmaas_tune_adapters.lmaas.backend import LMaaSBackend

__all__ = ["LMaaSBackend"]
