"""What the extra ``compare`` installs, asked for before anything is paid."""

from __future__ import annotations

from importlib.util import find_spec

from lmaas_tune.errors import MissingExtraError


def need(feature: str, *packages: str) -> None:
    """See that packages are installed; none of them is imported.

    Args:
        feature: What needs them, in the words of an error.
        packages: Names to import; their distributions are called alike.

    Raises:
        MissingExtraError: One is not.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(feature, package=package, extra="compare")
