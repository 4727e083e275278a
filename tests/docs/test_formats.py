"""docs/formats.md names the keys that are written, with their types, and no others."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lmaas_tune import (
    Deep,
    DeepPrompt,
    PermanentError,
    PointPrompt,
    ScoreReply,
    ScoreRequest,
    Settings,
    Soft,
    SoftPrompt,
    Subspace,
    Task,
    Template,
    Text,
    TextPrompt,
    TunedPrompt,
    Tuner,
    Usage,
    Verbalizer,
)
from lmaas_tune.artifact import Member
from lmaas_tune.heads import FittedHead
from lmaas_tune.lab.paper.cell import Conditions
from lmaas_tune.lab.record import FinalScore
from lmaas_tune.testing.toy import ToyBackend
from tests.docs.pages import blocks, text_of
from tests.lab.films import compare_films

TYPES = {
    "text": str,
    "integer": int,
    "number": (int, float),
    "object": dict,
    "list": list,
    "true": bool,
}
TRAIN = [(f"a {mood} day {day}", mood) for day in range(16) for mood in ("good", "bad")]
VALIDATION = [(f"the {mood} night {night}", mood) for night in range(4) for mood in ("good", "bad")]


@dataclass(frozen=True)
class Row:
    """A row of a table of the page."""

    keys: frozenset[str]
    cells: dict[str, str]


def rows_of(section: str) -> list[Row]:
    """The rows of the first table under a heading."""
    _, _, rest = text_of("docs/formats.md").partition(f"# {section}\n")
    text = re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("| ")]
    head, *others = ([cell.strip() for cell in line] for line in lines)
    return [
        Row(frozenset(re.findall(r"`(\w+)`", line[0])), dict(zip(head, line, strict=True)))
        for line in others
    ]


def keys_of(section: str) -> set[str]:
    return set().union(*(row.keys for row in rows_of(section)))


class Costly(ToyBackend):
    """Takes four rows a call, gives a bound in each answer, and fails at its last call."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.capabilities = replace(self.capabilities, rows_per_call=4)
        self._left = calls

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self._left -= 1
        if self._left < 0:
            raise PermanentError("closed", usage=Usage(requests=1))
        return [replace(reply, bounds=1) for reply in super().score(requests)]


def saved_prompts(folder: Path) -> None:
    """Prompts of every kind, with a matrix or without, alone or averaged."""
    vectors = np.ones((2, 3), dtype=np.float32)
    soft = SoftPrompt(vectors, "add", (5, 6))
    point = PointPrompt(
        Subspace(start=soft, dim=4, projection="uniform", alpha=1.0, seed=0), np.zeros(4)
    )
    task = Task(Template("{text} {prompt} {label}"), Verbalizer({"0": "bad", "1": "good"}))
    matrix = FittedHead(np.zeros(2), np.ones((3, 2)))
    prompts = [DeepPrompt(SoftPrompt(vectors), [vectors]), TextPrompt("so"), point]
    others = tuple(Member(prompt, matrix) for prompt in prompts)
    TunedPrompt(soft, task, matrix, ("so",), others).save(folder / "averaged")
    TunedPrompt.without_head(TextPrompt("so"), task).save(folder / "text")


def runs(folder: Path) -> None:
    """Runs whose journals have lines of every kind."""
    small = Settings(prompt=Soft(intrinsic_dim=4), validation_rows="select", averaged=1)
    deep = replace(small, prompt=Deep(intrinsic_dim=2, layers="all"))
    for name, backend, settings, budget in (
        ("soft", ToyBackend(), small, "calls=60"),
        ("deep", ToyBackend(layers=3), deep, "calls=90"),
        ("text", ToyBackend(), replace(small, prompt=Text()), "calls=60"),
        ("parts", Costly(10**6), small, "calls=40"),
    ):
        tuner(backend, settings, folder / name, budget).fit(TRAIN, VALIDATION)
    with pytest.raises(PermanentError):
        tuner(Costly(20), small, folder / "failing", "calls=40").fit(TRAIN, VALIDATION)


def tuner(backend: ToyBackend, settings: Settings, out: Path, budget: str) -> Tuner:
    return Tuner(
        backend,
        settings=settings,
        out=out,
        budget=budget,
        callbacks=(),
        on_note=lambda note: None,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    saved_prompts(made / "prompts")
    runs(made / "runs")
    compare_films(made / "comparison", "random", seeds=[1], on_note=lambda note: None)
    return made


Written = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def written(folder: Path) -> Written:
    """The objects in all files, by the section of the page that describes them."""
    found: Written = defaultdict(list)
    for path in folder.rglob("prompt.json"):
        add_prompt(found, json.loads(path.read_text(encoding="utf-8")))
    for path in folder.rglob("journal.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            add_line(found, json.loads(line))
    for path in folder.rglob("run.jsonl"):
        add_record(found, json.loads(path.read_text(encoding="utf-8")))
    odds = np.array([[1.0, 0.0], [0.0, 1.0]])
    found["A final score"].append(vars(FinalScore.of_log_odds(odds, np.array([0, 0]))))
    return found


def add_prompt(found: Written, content: dict[str, Any]) -> None:
    own = keys_of("A prompt in prompt.json")
    for prompt in ({key: content[key] for key in content if key in own}, *content["others"]):
        found["A prompt in prompt.json"].append(prompt)
        if "subspace" in prompt:
            found["A subspace"].append(prompt["subspace"])
    found["prompt.json"].append({key: content[key] for key in content if key not in own})
    if "settings" in content:
        found["Settings"].append(content["settings"])
        found["Amounts"].append(content["spent"])
        losses = content["train"], content["validation"]
        found["Loss and accuracy"] += [loss for loss in losses if loss is not None]


def add_line(found: Written, line: dict[str, Any]) -> None:
    kinds = {"format": "First line", "part": "Parts", "lost": "Failures"}
    kinds |= {"most": "Number of starts", "stds": "Scale of layers", "evaluations": "Answers"}
    (section,) = (section for key, section in kinds.items() if key in line)
    found[section].append(line)
    found["Loss and accuracy"] += line.get("evaluations", [])
    if section == "First line":
        limits = {"budget": "none", "allow_bounds": False}  # which it leaves out, as the page says
        found["Settings"].append({**line["settings"], **limits})
    else:
        found["Amounts"].append(line["spent"])


def add_record(found: Written, record: dict[str, Any]) -> None:
    found["The record of a run"].append(record)
    found["Amounts"].append(record["spent"])
    found["The curve"].append(record["curve"])
    found["A final score"] += [score for score in record["final"].values() if score is not None]


SECTIONS = (
    "prompt.json",
    "A prompt in prompt.json",
    "A subspace",
    "Settings",
    "First line",
    "Answers",
    "Number of starts",
    "Scale of layers",
    "Parts",
    "Failures",
    "Loss and accuracy",
    "Amounts",
    "The record of a run",
    "A final score",
    "The curve",
)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_names_the_keys_that_are_written_and_no_others(
    section: str, written: Written
) -> None:
    assert keys_of(section) == set().union(*written[section])


@pytest.mark.parametrize("section", SECTIONS)
def test_values_have_the_types_that_the_page_names(section: str, written: Written) -> None:
    for key, stated in stated_types(section):
        values = [content[key] for content in written[section] if key in content]
        allowed = [TYPES[word.split()[0]] for word in stated.rstrip("?").split(" or ")]
        for value in values:
            fits = any(isinstance(value, kind) for kind in allowed)
            assert fits or (value is None and stated.endswith("?")), (key, stated, value)


def stated_types(section: str) -> Iterator[tuple[str, str]]:
    for row in rows_of(section):
        if stated := row.cells.get("type"):
            yield from ((key, stated) for key in sorted(row.keys))


def test_keys_that_are_not_optional_are_always_written(written: Written) -> None:
    for section in ("First line", "Answers", "Parts", "The record of a run", "The curve"):
        assert all(set(content) == keys_of(section) for content in written[section]), section


def test_arrays_have_the_names_shapes_and_types_of_the_page(folder: Path) -> None:
    seen = set()
    stated = {key: row.cells for row in rows_of("prompt.safetensors") for key in row.keys}
    for path in folder.rglob("prompt.safetensors"):
        for name, array in safetensors.numpy.load_file(path).items():
            cells = stated[name.rpartition("/")[2]]
            assert array.dtype.name == cells["type"]
            assert array.ndim == cells["shape"].count(",") + 1
            seen.add(name.rpartition("/")[2])
    assert seen == set(stated)


def test_the_page_names_the_conditions_of_the_table() -> None:
    (row,) = (row for row in rows_of("The record of a run") if "conditions" in row.keys)
    assert {f.name for f in fields(Conditions)} <= set(re.findall(r"`(\w+)`", row.cells["content"]))


def test_the_pages_check_of_seals_accepts_journals_and_finds_a_change(folder: Path) -> None:
    (code,) = blocks("docs/formats.md", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    for path in folder.rglob("journal.jsonl"):
        assert names["seals_are_right"](path)
    path.write_bytes(path.read_bytes().replace(b'"accuracy": ', b'"accuracy":  ', 1))
    assert not names["seals_are_right"](path)
