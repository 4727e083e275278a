"""Skips these tests if a package of the extra `serve` is missing."""

from __future__ import annotations

import pytest

pytest.importorskip("cachetools", reason="the extra 'serve' is not installed")
pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")
