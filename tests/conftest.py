"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# a deadline would measure the machine and what else runs on it
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
