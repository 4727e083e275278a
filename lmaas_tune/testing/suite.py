"""Base of the conformance suites: checks, conditions that skip them, and known deviations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

from lmaas_tune.errors import did_you_mean

Check = Callable[..., None]


def check(*, needs: str | None = None) -> Callable[[Check], Check]:
    """Mark a method as a check of its suite.

    A check is skipped if its switch `needs` is off, and expected to fail if the suite declares a
    deviation. A declared deviation that passes is a failure.

    Args:
        needs: Key of the suite's `switches`; None for a check that always runs.
    """

    def decorate(function: Check) -> Check:
        @functools.wraps(function)
        def run(self: Conformance, *args: Any, **fixtures: Any) -> None:
            subject = next(iter([*args, *fixtures.values()]))
            off = None if needs is None else self.switches(subject)[needs]
            if off is not None:
                pytest.skip(off)
            reason = self.deviations.get(function.__name__)
            if reason is None:
                function(self, *args, **fixtures)
                return
            try:
                function(self, *args, **fixtures)
            except Exception:
                pytest.xfail(reason)
            pytest.fail(f"declared as a deviation ({reason}), but it passes: remove it")

        run.needs = needs  # type: ignore[attr-defined]
        return run

    return decorate


def require(condition: object, sentence: str) -> None:
    """Fail the check with `sentence` unless `condition` holds, also under ``python -O``."""
    if not condition:
        raise AssertionError(sentence)


class Conformance:
    """Base class of the suites.

    Attributes:
        deviations: Names of checks that are known to fail, each with its reason.
    """

    deviations: ClassVar[Mapping[str, str]] = {}

    def switches(self, subject: Any) -> dict[str, str | None]:
        """Switches of the checks: None if `subject` has the capability, else the reason to skip."""
        return {}

    @classmethod
    def checks(cls) -> dict[str, str | None]:
        """Names of all checks, each with its switch."""
        found = {name: getattr(cls, name) for name in dir(cls)}
        return {name: value.needs for name, value in found.items() if hasattr(value, "needs")}

    def tally(self, subject: Any) -> str:
        """Summary of the checks for `subject`: how many run, which are skipped, and why.

        Raises:
            AssertionError: A deviation names no check, or all checks of a claimed capability are
                skipped or deviate.
        """
        checks, switches = self.checks(), self.switches(subject)
        for name in self.deviations:
            require(name in checks, f"deviation {name!r} is no check; {did_you_mean(name, checks)}")
        skipped = {
            name: switches[needs]
            for name, needs in checks.items()
            if needs is not None and switches[needs] is not None
        }
        required = [name for name in checks if name not in skipped and name not in self.deviations]
        require(required, "every check is skipped or declared a deviation")
        for claim, off in switches.items():
            ran = [name for name in required if checks[name] == claim]
            require(
                off is not None or ran,
                f"{claim} is claimed, but each of its checks is declared a deviation",
            )
        lines = [
            f"{type(self).__name__}: {len(checks) - len(skipped)} checks, {len(skipped)} skipped"
        ]
        lines += [f"  skipped {name}: {reason}" for name, reason in skipped.items()]
        lines += [f"  deviates {name}: {reason}" for name, reason in self.deviations.items()]
        return "\n".join(lines)

    def report(self, subject: Any, capsys: pytest.CaptureFixture[str]) -> None:
        """Print the tally despite pytest's capturing, so that skipped checks are visible."""
        text = self.tally(subject)
        with capsys.disabled():
            print(f"\n{text}")
