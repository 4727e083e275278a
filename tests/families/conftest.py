"""The settings of the tests of the backend ``hf``: one thread, no network."""

from tests.hf.conftest import one_thread  # noqa: F401
