"""What was installed when a run was made."""

from __future__ import annotations

import platform
from importlib import metadata

# torch and transformers only where a local model runs: their absence is no error
_RECORDED = ("lmaas-tune", "numpy", "cma", "nevergrad", "torch", "transformers")


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide what a run does."""
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
