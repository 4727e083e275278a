"""The command line in a shell and on a terminal: completion by Tab, and colours."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmaas_tune.cli import main
from lmaas_tune.cli.colour import YELLOW, coloured

# completes the last of its words as bash does when Tab is pressed after it
TAB = r"""
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
function=$(complete -p lmaas-tune | sed 's/.*-F \([^ ]*\).*/\1/')
"$function" lmaas-tune "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def completed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], list[str]]:
    """What bash makes of a line when Tab is pressed."""
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not installed")
    script = tmp_path / "completion.bash"
    assert main(["completion", "bash"]) == 0
    script.write_text(capsys.readouterr().out)

    def press_tab(line: str) -> list[str]:
        words = [bash, "--norc", "-c", TAB, "bash", str(script), *line.split(" ")]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()

    return press_tab


def test_tab_completes_commands_flags_names_and_files(
    completed: Callable[[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").touch()
    assert completed("lmaas-tune ev") == ["evaluate"]
    assert completed("lmaas-tune tune --optimizer-o") == ["--optimizer-options"]
    assert "cma" in completed("lmaas-tune tune --optimizer c")
    assert {"hf", "toy"} <= set(completed("lmaas-tune predict --backend "))
    assert completed("lmaas-tune compare --preset paper") == ["paper-icml22"]
    assert completed(f"lmaas-tune tune --train {tmp_path}/tr") == [f"{tmp_path}/train.jsonl"]


def on_terminal(*argv: str) -> str:
    """What a command prints on a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    for name in ("NO_COLOR", "FORCE_COLOR", "PYTHON_COLORS"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "lmaas_tune", *argv]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        printed = b""
        with contextlib.suppress(OSError):  # Linux tells so that the other end is closed
            while part := os.read(ours, 1 << 16):
                printed += part
        os.close(ours)
        process.wait()
    return printed.decode()


WRONG = ("predict", "--prompt", "nowhere", "--text", "a")


def test_errors_and_headings_are_coloured_on_a_terminal() -> None:
    assert on_terminal(*WRONG).startswith("\033[1;31merror:\033[0m nowhere")
    assert re.search("\033\\[[0-9;]*moptions:\033", on_terminal("tune", "--help"))


def test_json_is_plain_on_a_terminal_too() -> None:
    printed = on_terminal(*WRONG, "--json")
    assert "error: nowhere" in printed and "\033" not in printed


@pytest.mark.parametrize(
    ("variables", "terminal", "shown"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, False, True),
        ({"TERM": "xterm", "NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
    ],
)
def test_variables_and_the_stream_say_whether_there_are_colours(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], terminal: bool, shown: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    text = "note: it is late\nnote: so it is"
    assert ("\033" in coloured("^note:", YELLOW, text, stream)) == shown
