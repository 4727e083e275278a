"""What the pages print runs: Python blocks, and the arguments of commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is there: no test may reach a network

from lmaas_tune import Task, Template, TextPrompt, TunedPrompt, Verbalizer
from lmaas_tune.cli import main
from lmaas_tune.cli.program import parser
from tests.docs.pages import NAMES, ROOT, blocks, text_of

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WITH_PYTHON = [name for name in NAMES if blocks(name, "python")]
WITH_COMMANDS = [name for name in NAMES if "\nlmaas-tune " in text_of(name)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages take for granted: files of rows, and a saved prompt."""
    monkeypatch.chdir(tmp_path)
    task = Task(Template("{text} {prompt} {label}"), Verbalizer({"0": "bad", "1": "good"}))
    TunedPrompt.without_head(TextPrompt("so"), task).save("runs/mine")
    return tmp_path


def write_rows(place: Path, field: str) -> None:
    rows = [{field: f"a {word} day {n}", "label": n % 2} for n in range(4) for word in ("ok", "so")]
    for name in ("train", "validation", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (place / f"{name}.jsonl").write_text(text, encoding="utf-8")


def build_model(folder: Path) -> None:
    """A tiny model under the name of the hub's; a folder of this name comes first."""
    pytest.importorskip("torch", reason="the extra 'hf' is not installed")
    from tests.support import models

    models.build("llama", folder)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python_blocks_run(name: str, place: Path) -> None:
    code = re.sub(r"calls=\d+", "calls=30", "\n".join(blocks(name, "python")))  # to be quick
    write_rows(place, "sentence" if "{sentence}" in code else "text")
    if HUB in code:
        build_model(place / HUB)
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", [name for name in WITH_PYTHON if "Conformance" in text_of(name)])
def test_suites_on_the_pages_pass(name: str, place: Path) -> None:
    classes = [code for code in blocks(name, "python") if "class " in code]
    (place / "test_page.py").write_text("\n".join(classes), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own_path())
    assert done.returncode == 0, done.stdout


def own_path() -> dict[str, str]:
    """The environment, with this package in place of an installed one."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])}


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_commands_have_arguments_that_exist(name: str) -> None:
    for command in commands(name):
        found: tuple[Any, list[str]] = parser().parse_known_args(command)
        assert not found[1], f"{name}: {command} has unknown arguments {found[1]}"


def commands(name: str) -> Iterator[list[str]]:
    """The arguments of each line of a page that begins with ``lmaas-tune``."""
    for block in blocks(name, ""):
        text = re.sub(r"\$\(.*\)", "OUTPUT", block.replace("\\\n", " ").replace("$'", "'"))
        for variable, value in re.findall(r"^(\w+)=(.+)$", text, flags=re.MULTILINE):
            text = text.replace(f"${variable}", value.strip("\"'"))
        for line in text.splitlines():
            if line.startswith("lmaas-tune "):
                words = shlex.split(line, comments=True)
                yield words[1 : words.index("&") if "&" in words else None]


def test_the_tutorials_commands_run_one_after_the_other(place: Path) -> None:
    """With the toy for the model; a service is not started."""
    exec("\n".join(blocks("docs/tutorial.md", "python")), {})
    for command in commands("docs/tutorial.md"):
        if "--model" in command and command[0] != "serve":
            at = command.index("--model")
            assert main([*command[:at], "--backend", "toy", *command[at + 2 :]]) == 0, command
    header, *rows = (place / "labelled.csv").read_text(encoding="utf-8").splitlines()
    assert header == "id,text,label,probability,margin"
    assert len(rows) == 4


def test_commands_are_found() -> None:
    assert sum(len(list(commands(name))) for name in WITH_COMMANDS) > 30


def test_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text_of("README.md"))
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
