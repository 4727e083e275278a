"""Test tools for authors of backends, optimizers and heads: a toy backend and conformance suites.

The suites need pytest, which is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmaas_tune.testing.toy import ToyBackend

if TYPE_CHECKING:
    from lmaas_tune.testing.backends import BackendConformance
    from lmaas_tune.testing.heads import HeadConformance
    from lmaas_tune.testing.optimizers import OptimizerConformance

_SUITES = {
    "BackendConformance": "lmaas_tune.testing.backends",
    "HeadConformance": "lmaas_tune.testing.heads",
    "OptimizerConformance": "lmaas_tune.testing.optimizers",
}

__all__ = ["BackendConformance", "HeadConformance", "OptimizerConformance", "ToyBackend"]


def __getattr__(name: str) -> Any:
    if name not in _SUITES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_SUITES[name]), name)
