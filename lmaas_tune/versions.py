"""Versions of Python and packages, as recorded with a run."""

from __future__ import annotations

import platform
from importlib import metadata

# torch and transformers are optional
_RECORDED = ("lmaas-tune", "numpy", "cma", "nevergrad", "torch", "transformers")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that influence results."""
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
