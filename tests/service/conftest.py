"""Where the extra is missing there is nothing to test."""

from __future__ import annotations

import pytest

pytest.importorskip("cachetools", reason="the extra 'serve' is not installed")
pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")
