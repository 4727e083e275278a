"""Two searches at once on two cores, as a multiple of the time of one alone.

Both are of the toy model, so nearly all of the time is the optimizer's and the heads'::

    python benchmarks/searches_side_by_side.py
"""

from __future__ import annotations

import subprocess
import sys

TURNS = 3
SEARCH = """
import time
from lmaas_tune import Tuner
from lmaas_tune.testing.toy import ToyBackend
labels = ["good", "bad", "fair", "poor"]
rows = [(f"a {label} thing, number {number}", label) for number in range(32) for label in labels]
began = time.perf_counter()
Tuner(ToyBackend(), budget="calls=150").fit(rows)
print(time.perf_counter() - began)
"""


def seconds(searches: int) -> float:
    """The time of the slowest of some searches that begin together."""
    command = [sys.executable, "-W", "ignore", "-c", SEARCH]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(searches)
    ]
    return max(float(process.communicate()[0]) for process in started)


def main() -> None:
    alone, together = (min(seconds(searches) for _ in range(TURNS)) for searches in (1, 2))
    print(f"one {alone:.1f} s, two at once {together:.1f} s: {together / alone:.1f} times as long")


if __name__ == "__main__":
    main()
