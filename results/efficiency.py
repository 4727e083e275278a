"""The paper's table 4, measured here: time, memory of user and service, bytes a query.

    python results/efficiency.py --model M --data DIR --task sst2 --seed 13 [--calls 300]

Each row is made by a process of its own, so that its peak memory is its own. Black-box tuning runs
against `lmaas-tune serve` on loopback: the user is the process of `lmaas-tune tune`, the service
the server's, and the bytes are the ledger's, all headers included. The other rows hold the model
themselves; for the two that work on features, which a service would send, the bytes are worked out
from the shapes, as 4 bytes a number.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WHITE_BOX = ("prompt-tuning", "p-tuning-v2", "model-tuning", "feature-mlp", "feature-bilstm")
TITLES = {
    "prompt-tuning": "Prompt Tuning",
    "p-tuning-v2": "P-Tuning v2",
    "model-tuning": "Model Tuning",
    "feature-mlp": "Feature-MLP",
    "feature-bilstm": "Feature-BiLSTM",
    "bbt": "Black-Box Tuning",
}
MB = 1024.0  # of what the kernel counts, kilobytes


def white_box(arguments: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    import numpy as np
    from lmaas_tune_adapters.hf import HFBackend

    from lmaas_tune.backend import ScoreRequest
    from lmaas_tune.lab.baselines import fit_baseline
    from lmaas_tune.lab.paper import PAPER_TASKS, DataSource
    from lmaas_tune.prompts import TextPrompt

    task = PAPER_TASKS[arguments.task]
    wording = task.wording("text-first", "causal")
    rows = DataSource(data=str(arguments.data)).few_shot(task, arguments.seed)
    backend = HFBackend(arguments.model)
    began = time.perf_counter()
    fitted = fit_baseline(
        arguments.only,
        backend,
        wording.task,
        rows.train,
        rows.validation,
        seed=arguments.seed,
        words=wording.words,
    )
    seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB
    test = rows.test[: arguments.test_rows]
    right = fitted.scores(test).argmax(axis=1) == wording.task.verbalizer.targets(test)
    batch = wording.task.template.batch(rows.train)
    request = ScoreRequest(TextPrompt(wording.words), batch, wording.task.verbalizer.candidates)
    width = backend.capabilities.soft_prompt_width or 0
    numbers = {
        "feature-mlp": len(batch) * width,
        "feature-bilstm": backend.inspect(request).usage.tokens * width,
    }
    text = sum(len(" ".join(row.fields.values()).encode()) for row in rows.train)
    sent = arguments.only in numbers
    return {
        "seconds": seconds,
        "accuracy": float(np.mean(right)),
        "service_mb": memory,
        "up": text if sent else None,
        "down": 4 * numbers[arguments.only] if sent else None,
    }


def black_box(arguments: argparse.Namespace) -> dict[str, Any]:
    """The row that is a service and its user."""
    from lmaas_tune.lab.paper import PAPER_TASKS

    wording = PAPER_TASKS[arguments.task].wording("text-first", "causal")
    folder = arguments.data / arguments.task
    with tempfile.TemporaryDirectory() as name, service(arguments.model, Path(name)) as (url, pid):
        test = Path(name) / "test.jsonl"
        lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
        test.write_text("\n".join(lines[: arguments.test_rows]), encoding="utf-8")
        labels = {str(number): word for number, word in enumerate(wording.label_words)}
        split = folder / f"seed-{arguments.seed}"
        command = [sys.executable, "-m", "lmaas_tune", "tune", "--json", "--backend", "lmaas"]
        command += ["--url", url, "--api-key-file", f"{name}/key", "--template", wording.template]
        command += ["--labels", json.dumps(labels), "--prompt-init", wording.words]
        command += ["--train", f"{split}/train.jsonl", "--validation", f"{split}/dev.jsonl"]
        command += ["--test", str(test), "--budget", f"calls={arguments.calls}"]
        command += ["--seed", str(arguments.seed)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / MB
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    content = json.loads(done.stdout)
    spent = content["spent"]
    queries = spent["requests"]
    return {
        "seconds": spent["seconds"],
        "accuracy": content["tuned"]["accuracy"],
        "user_mb": memory,
        "service_mb": int(peak.split()[1]) / MB,
        "up": spent["bytes_up"] / queries,
        "down": spent["bytes_down"] / queries,
    }


@contextmanager
def service(model: str, folder: Path) -> Iterator[tuple[str, int]]:
    """A running service: its address, and the number of its process."""
    (folder / "key").write_text("a-key-for-this-measurement\n", encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lmaas_tune", "serve", "--model", model]
    command += ["--port", str(port), "--api-key-file", str(folder / "key")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--test-rows", type=int, default=500)
    parser.add_argument("--only", choices=TITLES, help="one row, as a JSON object")
    arguments = parser.parse_args()
    if arguments.only is not None:
        made = black_box(arguments) if arguments.only == "bbt" else white_box(arguments)
        print(json.dumps(made))
        return
    print("| row | accuracy | time | user | service | up a query | down a query |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, title in TITLES.items():
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ}
        )
        row = json.loads(done.stdout.splitlines()[-1])
        cells = [title, f"{row['accuracy']:.3f}", f"{row['seconds'] / 60:.1f} min"]
        cells += [_amount(row.get("user_mb"), "MB"), _amount(row["service_mb"], "MB")]
        cells += [_amount(row[way] and row[way] / 1000, "kB") for way in ("up", "down")]
        print("| " + " | ".join(cells) + " |", flush=True)


def _amount(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.0f} {unit}" if value >= 10 else f"{value:.2f} {unit}"


if __name__ == "__main__":
    main()
