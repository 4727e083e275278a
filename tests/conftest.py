"""Settings of all tests, and a summary of skipped ones."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

# a deadline would measure the machine and what else runs on it
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Report the tests that were skipped because a server is missing."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in skipped]
    for reason in dict.fromkeys(reason for reason in reasons if "`make test-" in reason):
        terminalreporter.write_line(f"{reasons.count(reason)} tests skipped: {reason}")
