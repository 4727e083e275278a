"""An interrupt ends the command with status 130 and one line, whenever it comes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

COMMAND = "import sys; from lmaas_tune.cli import main; sys.exit(main())"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"{word} film", "label": word} for word in ("good", "bad") * 4]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


TUNE = ["tune", "--train", "train.jsonl", "--intrinsic-dim", "4", "--budget", "calls=200"]
TUNE += ["--optimizer", "cma"]

AT_IMPORT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Interrupting())
"""


def started(code: str, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code + COMMAND, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # pytest itself may run where Ctrl-C is ignored, which children inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "module", ["lmaas_tune.cli.program", "numpy", "numpy.linalg", "lmaas_tune.tuner", "cma"]
)
def test_an_interrupt_amid_our_imports_prints_one_line(
    folder: Path, module: str, number: signal.Signals
) -> None:
    code = AT_IMPORT.format(module=module, number=int(number))
    child = started(code, *TUNE, "--backend", "toy")
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out, err) == (130, "", "interrupted\n")


@pytest.mark.parametrize("module", ["torch", "torch.nn", "torch.fx", "transformers", "tokenizers"])
def test_an_interrupt_amid_the_imports_of_a_backend_prints_one_line(
    folder: Path, module: str
) -> None:
    pytest.importorskip("transformers")
    code = AT_IMPORT.format(module=module, number=int(signal.SIGINT))
    child = started(code, *TUNE, "--backend", "hf", "--model", "nowhere")
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out, err) == (130, "", "interrupted\n")


STUBBORN = """
import sys, threading
from lmaas_tune.testing.toy import ToyBackend

def stubborn(self, requests):
    while True:
        try:
            print("waiting", file=sys.stderr, flush=True)
            while True:  # a signal just before a wait does not end it
                threading.Event().wait(0.05)
        except KeyboardInterrupt:
            pass

ToyBackend.score = stubborn
"""


def said(child: subprocess.Popen[str], words: str) -> str:
    """The next line of standard error with these words."""
    assert child.stderr is not None
    limit = threading.Timer(60, child.kill)  # its output ends then
    limit.start()
    lines = []
    for line in child.stderr:
        lines.append(line)
        if words in line:
            limit.cancel()
            return line
    pytest.fail(f"the command ended without saying {words!r}, but {lines}")


@pytest.fixture
def stubborn(folder: Path) -> Iterator[subprocess.Popen[str]]:
    child = started(STUBBORN, *TUNE, "--backend", "toy")
    yield child
    child.kill()
    child.communicate()


def test_a_third_interrupt_ends_what_takes_none(stubborn: subprocess.Popen[str]) -> None:
    for _ in range(3):
        said(stubborn, "waiting")
        stubborn.send_signal(signal.SIGINT)
    _, err = stubborn.communicate(timeout=120)
    assert (stubborn.returncode, err) == (130, "interrupted\n")


CALLS_THAT_STAND_STILL = """
import sys, threading
from dataclasses import replace
from lmaas_tune.testing.toy import ToyBackend

def stands_still(self, requests):
    print("asked", file=sys.stderr, flush=True)
    threading.Event().wait()

made = ToyBackend.__init__

def made_with_calls(self, **settings):
    made(self, **settings)
    self.capabilities = replace(self.capabilities, rows_per_call=4)

ToyBackend.__init__, ToyBackend.score = made_with_calls, stands_still
"""


def test_a_second_interrupt_leaves_the_calls_under_way(folder: Path) -> None:
    child = started(CALLS_THAT_STAND_STILL, *TUNE, "--backend", "toy", "--out", "run")
    said(child, "asked")
    child.send_signal(signal.SIGINT)
    said(child, "interrupt again to drop them")
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "Traceback" not in err
    assert "Interrupted after" in out


AMID_THE_START_OF_A_THREAD = """
import os, signal
start = threading.Thread.start

def interrupted(self):
    start(self)
    if self.name.startswith("ThreadPoolExecutor"):
        threading.Thread.start = start
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(1)

threading.Thread.start = interrupted
"""


def test_an_interrupt_while_calls_are_sent_says_what_is_waited_for(folder: Path) -> None:
    code = CALLS_THAT_STAND_STILL + AMID_THE_START_OF_A_THREAD
    child = started(code, *TUNE, "--backend", "toy", "--out", "run")
    assert "active calls: 1;" in said(child, "interrupt again to drop them")
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "Interrupted after" in out


AT_THE_END = """
import atexit, os, signal
atexit.register(os.kill, os.getpid(), signal.SIGINT)
"""


def test_an_interrupt_after_the_last_line_prints_no_traceback(folder: Path) -> None:
    child = started(AT_THE_END, "optimizers")
    out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (130, "interrupted\n")
    assert "cma" in out


def test_a_process_that_ignores_interrupts_goes_on_to(folder: Path) -> None:
    """As what a shell starts in the background does."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    child = started(code + AT_IMPORT.format(module="numpy", number=int(signal.SIGINT)), "backends")
    out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (0, "")
    assert "toy" in out


def test_the_public_names_are_imported_when_one_is_asked_for() -> None:
    code = "import sys, lmaas_tune; assert 'numpy' not in sys.modules; lmaas_tune.errors.InputError"
    code += "; from lmaas_tune import *; Tuner; assert 'Tuner' in dir(lmaas_tune)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
