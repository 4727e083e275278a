"""A check that the packages of an extra are installed, made before anything is paid."""

from __future__ import annotations

from importlib.util import find_spec

from lmaas_tune.errors import MissingExtraError


def need(feature: str, *packages: str, extra: str = "compare") -> None:
    """Check that packages are installed; none of them is imported.

    Args:
        feature: What needs them, for the error's message.
        packages: Names to import; their distributions have the same names.
        extra: The extra that installs them.

    Raises:
        MissingExtraError: One is not.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(feature, package=package, extra=extra)
