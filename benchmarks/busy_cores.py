"""What a busy core costs the backend `hf`, and what settings of its threads give back.

One prompt at a time is scored, as where starts are compared, by the model alone and beside
programs that keep one core busy each. Every cell is a process of its own, since these settings
are read when torch is imported::

    python benchmarks/busy_cores.py                    # random weights, the shape of SmolLM2-135M
    python benchmarks/busy_cores.py --model FOLDER     # a causal model of your own
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from backend_speed import CANDIDATES, causal_model, processor, sentences
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.prompts import TextPrompt
from lmaas_tune.task import Example, Template

SETTINGS: dict[str, dict[str, str]] = {
    "none": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
ROWS = (16, 64)
BUSY = "while True: pass"


def measure(model: str, rows: int, turns: int) -> float:
    """The median of the seconds that a prompt of a few words takes."""
    backend = HFBackend(model)
    texts = (2 * sentences())[:rows]
    batch = Template("{text} {prompt} {label}").batch([Example({"text": text}) for text in texts])
    seconds = []
    for turn in range(turns + 1):
        request = ScoreRequest(TextPrompt(f"It was, number {turn},"), batch, CANDIDATES)
        began = time.perf_counter()
        backend.score([request])
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first one reads the texts


def in_a_process(settings: dict[str, str], *arguments: str) -> float:
    """What `measure` returns under these settings."""
    command = [sys.executable, "-W", "ignore", __file__, "--measure", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **settings}
    return float(subprocess.check_output(command, env=environment, text=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="folder of a causal model, for random weights")
    parser.add_argument("--busy", type=int, default=1, help="cores that other programs use")
    parser.add_argument("--turns", type=int, default=10, help="prompts that are scored")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        model, rows, turns = arguments.measure
        print(measure(model, int(rows), int(turns)))
        return
    print(f"{processor()}, {arguments.busy} of them busy; seconds a prompt\n")
    print("| rows | setting | alone | beside busy cores | times as long |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        model = arguments.model
        if model is None:
            model = str(causal_model(Path(temporary)))
        for rows in ROWS:
            for name, settings in SETTINGS.items():
                cell = (settings, model, str(rows), str(arguments.turns))
                alone = in_a_process(*cell)
                others = [
                    subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(arguments.busy)
                ]
                try:
                    busy = in_a_process(*cell)
                finally:
                    for other in others:
                        other.kill()
                ratio = busy / alone
                print(f"| {rows} | {name} | {alone:.3f} | {busy:.3f} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
