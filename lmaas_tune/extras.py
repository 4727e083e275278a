"""A check that optional packages are installed, before the first paid call."""

from __future__ import annotations

from importlib.util import find_spec

from lmaas_tune.errors import MissingExtraError


def need(feature: str, *packages: str, extra: str = "compare") -> None:
    """Check that packages are installed; none of them is imported.

    Args:
        feature: The feature that needs them, for the message.
        packages: Module names; their distributions have the same names.
        extra: The extra that installs them.

    Raises:
        MissingExtraError: A package is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(feature, package=package, extra=extra)
