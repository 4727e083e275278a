"""Whatever stands in a file that is handed in, it is read or refused in a sentence, soon."""

from __future__ import annotations

import base64
import copy
import json
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmaas_tune import (
    DeepPrompt,
    PointPrompt,
    SoftPrompt,
    Subspace,
    Task,
    Template,
    TextPrompt,
    TunedPrompt,
    Tuner,
    Verbalizer,
    read_examples,
)
from lmaas_tune.cli.arguments import parse_options
from lmaas_tune.cli.search_flags import label_words
from lmaas_tune.errors import InputError, LMaaSError, StorageError
from lmaas_tune.heads import FittedHead
from lmaas_tune.journal import _CHECKSUM_FIELD, _checksum
from lmaas_tune.testing.toy import ToyBackend
from lmaas_tune.typed_json import checked, parse_json

TASK = Task(Template("{text} {prompt} {label}"), Verbalizer({"a": "good", "b": "bad"}))
SOFT = SoftPrompt(np.full((2, 16), 0.5))
POINT = PointPrompt(
    Subspace(start="words", words="the thing", dim=4, projection="normal", alpha=1.0, seed=1),
    np.zeros(4),
)
OWN = PointPrompt(
    Subspace(start=SOFT, length=2, dim=4, projection="uniform", alpha=1.0, seed=1), np.zeros(4)
)
PROMPTS = {
    "soft": SOFT,
    "deep": DeepPrompt(SOFT, [SOFT.vectors]),
    "text": TextPrompt("It was"),
    "point": POINT,
    "point from vectors": OWN,
}
TOY = ToyBackend(layers=2)
TOY.capabilities = replace(TOY.capabilities, words_per_request=None)  # for the head of `saved`

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 10**9, 10**400, 3 * 10**8])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\ud800", "nan", "1", "soft", "text", "point", "x" * 1000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in some JSON with each of its keys."""
    keys = content if isinstance(content, dict) else range(len(content))
    for key in list(keys):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from places(content[key])


@st.composite
def damaged(draw: st.DrawFn, content: Any) -> Any:
    """The JSON with something else in one place, or in two."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 2))):
        container, key = draw(st.sampled_from(list(places(content))))
        if isinstance(container, dict) and draw(st.booleans()):
            del container[key]
        else:
            container[key] = draw(anything)
        if not content:
            break
    return content


def answered(work: Callable[[], object]) -> LMaaSError | None:
    """What came of it: nothing, or an error of ours, within a second."""
    began = time.process_time()
    error = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except LMaaSError as refused:
        error = refused
        assert len(str(error)) < 2000
    assert time.process_time() - began < 1.0
    return error


fuzzed = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def saved(prompt: Any, folder: Path) -> dict[str, Any]:
    head = FittedHead(np.zeros(2), np.eye(3, 2))
    provenance = {"backend": TOY.identity}
    TunedPrompt(prompt, TASK, head, ("very",), provenance=provenance).save(folder)
    content: dict[str, Any] = json.loads((folder / "prompt.json").read_text())
    return content


def use(folder: Path) -> None:
    TunedPrompt.load(folder).predict(TOY, ["good"])


# Saved prompts


@pytest.mark.parametrize("kind", PROMPTS)
@given(data=st.data())
@fuzzed
def test_any_damage_to_a_saved_prompt_is_told(tmp_path: Path, kind: str, data: Any) -> None:
    content = data.draw(damaged(saved(PROMPTS[kind], tmp_path)))
    with_digest(content)
    (tmp_path / "prompt.json").write_text(json.dumps(content))
    answered(lambda: use(tmp_path))


def with_digest(content: Any) -> None:
    """Give what a point says the digest that goes with it, where there is one."""
    try:
        subspace = Subspace.from_json(content["subspace"])
        content["digest"] = PointPrompt(subspace, content["point"]).digest
    except (InputError, KeyError, TypeError, ValueError, OverflowError):
        pass


@given(content=anything)
@fuzzed
def test_any_json_is_a_saved_prompt_or_none(tmp_path: Path, content: Any) -> None:
    (tmp_path / "prompt.json").write_text(json.dumps(content))
    assert isinstance(answered(lambda: use(tmp_path)), StorageError)


@pytest.mark.parametrize(
    "change",
    [
        {"length": 3 * 10**8, "start": "zero"},
        {"length": 60_000, "start": "zero"},
        {"length": "9"},
        {"length": 0},
        {"length": True},
        {"seed": "x"},
        {"seed": -3},
        {"seed": 2.0},
        {"words": ["a"]},
        {"dim": 4.0},
        {"alpha": "1"},
        {"alpha": 0},
        {"start": "nowhere"},
        {"start": {"vectors": "!", "length": 2, "insertion": "concat", "anchor": []}},
        {"start": {"vectors": "", "length": 3 * 10**8, "insertion": "concat", "anchor": []}},
        {"projection": "none"},
        {"insertion": 3},
    ],
)
def test_a_point_of_what_is_no_subspace_is_told(tmp_path: Path, change: dict[str, Any]) -> None:
    content = saved(POINT, tmp_path)
    content["subspace"] |= change
    with_digest(content)
    (tmp_path / "prompt.json").write_text(json.dumps(content))
    assert answered(lambda: use(tmp_path)) is not None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"format": NaN}',
        '{"format": 1e999}',
        '{"format": ' + "9" * 5000 + "}",
        '{"format": 1' + ', "a": 1' * 100_000 + "}",
        '{"x": ' + "[" * 300 + "]" * 300 + "}",
        "\ufeff{}",
        '{"format": true}',
    ],
)
def test_what_is_no_description_of_a_prompt_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "prompt.json").write_text(text)
    error = answered(lambda: use(tmp_path))
    assert "the saved prompt is damaged" in str(error)


def test_a_hundred_thousand_fields_and_labels_are_told_soon(tmp_path: Path) -> None:
    content = saved(PROMPTS["text"], tmp_path)
    many = {str(n): f"word{n}" for n in range(100_000)}
    template = "".join(f"{{a{n}}}" for n in range(100_000)) + "{prompt}{label}"
    for change in ({"template": template}, {"label_words": many}, {"bias": [0.0] * 100_000}):
        (tmp_path / "prompt.json").write_text(json.dumps({**content, **change}))
        assert answered(lambda: use(tmp_path)) is not None
    content |= {"template": template}
    (tmp_path / "prompt.json").write_text(json.dumps(content))
    tuned = TunedPrompt.load(tmp_path)
    row = {f"a{n}": "word " for n in range(100_000)}
    assert "is longer than" in str(answered(lambda: tuned.predict(TOY, [row])))


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    saved(SOFT, tmp_path)
    for name in ("prompt.safetensors", "prompt.json"):
        with (tmp_path / name).open("r+b") as file:
            file.truncate(50 * 2**30)  # sparse
        assert "it holds more than" in str(answered(lambda: use(tmp_path)))


def tensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


KEY = "prompt_embeddings"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        tensors({}, length=10 * 10**9),
        tensors({}, length=2**64 - 1),
        tensors(b"[" * 100_000),
        tensors(b'{"a":' * 100_000),
        tensors({KEY: {"dtype": "F32", "shape": [3 * 10**8, 16], "data_offsets": [0, 4]}}),
        tensors({KEY: {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 0]}}),
        tensors({KEY: {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}}),
        tensors({KEY: {"dtype": "F32", "shape": [0, 16], "data_offsets": [0, 0]}}),
        tensors({KEY: {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, bytes(4)),
        tensors({KEY: {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]}}, bytes(4)),
        tensors({KEY: {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
        tensors({KEY: {"dtype": "BOOL", "shape": [2, 2], "data_offsets": [0, 4]}}, bytes(4)),
        tensors({KEY: {"dtype": "C64", "shape": [1, 1], "data_offsets": [0, 8]}}, bytes(8)),
        tensors({KEY: {"dtype": "F32", "shape": [1, -1], "data_offsets": [0, 4]}}, bytes(4)),
        tensors({KEY: 3}),
        tensors({"__metadata__": {"a": 1}}),
        tensors({str(n): {} for n in range(100_000)}),
    ],
)
@pytest.mark.parametrize("kind", ["soft", "deep"])
def test_what_is_no_file_of_vectors_is_told(tmp_path: Path, kind: str, content: bytes) -> None:
    saved(PROMPTS[kind], tmp_path)
    (tmp_path / "prompt.safetensors").write_bytes(content)
    assert "the saved prompt is damaged" in str(answered(lambda: use(tmp_path)))


# Journals


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("journal")
    fit(folder, resume=False)
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seal"} for line in lines]


def fit(folder: Path, *, resume: bool) -> None:
    rows = [("good fine", "a"), ("bad awful", "b")]
    Tuner(
        TOY, "random", budget="calls=60", labels={"a": "good", "b": "bad"}, callbacks=(), out=folder
    ).fit(rows, rows, resume=resume)


@given(data=st.data())
@fuzzed
def test_any_damage_under_a_good_seal_is_told(
    tmp_path: Path, journal: list[dict[str, Any]], data: Any
) -> None:
    number = data.draw(st.integers(1, len(journal) - 1))
    lines = [*journal[:number], data.draw(damaged(journal[number])), *journal[number + 1 :]]
    (tmp_path / "journal.jsonl").write_bytes(sealed(lines))
    answered(lambda: fit(tmp_path, resume=True))


def sealed(lines: list[Any]) -> bytes:
    """A journal of these lines."""
    seal, data = "", b""
    for line in lines:
        body = json.dumps(line).encode()
        seal = _checksum(seal, body)
        data += body[:-1] + _CHECKSUM_FIELD % seal.encode() + b"\n"
    return data


def test_a_journal_line_nested_too_deeply_is_told(
    tmp_path: Path, journal: list[dict[str, Any]]
) -> None:
    body = b'{"format": ' + b"[" * 100_000 + b"}"
    for at in (0, 1):
        lines = sealed(journal[:at])
        seal = _checksum(_checksum("", json.dumps(journal[0]).encode()) if at else "", body)
        line = body[:-1] + _CHECKSUM_FIELD % seal.encode() + b"\n"
        (tmp_path / "journal.jsonl").write_bytes(lines + line)
        assert isinstance(answered(lambda: fit(tmp_path, resume=True)), StorageError)


# Records of comparisons and of the paper's table


@given(data=st.data())
@fuzzed
def test_any_damage_to_a_run_of_a_comparison_is_told(tmp_path: Path, data: Any) -> None:
    from lmaas_tune.lab.report import ComparisonResult
    from tests.lab import made

    content = [
        as_stored(record, "comparison")
        for record in made.table({"cma": [0.5, 0.4], "random": [0.6, 0.5]})
    ]
    number = data.draw(st.integers(0, 3))
    content[number] = data.draw(damaged(json.loads(json.dumps(content[number]))))

    def read() -> None:
        result = ComparisonResult.of(tmp_path)
        result.to_json()
        result.report(tmp_path / "report.html")

    for n, record in enumerate(content):
        (tmp_path / str(n)).mkdir(exist_ok=True)
        (tmp_path / str(n) / "run.jsonl").write_text(json.dumps(record))
    with within(5.0):
        answered_late(read)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < seconds


def answered_late(work: Callable[[], object]) -> None:
    """As `answered`, for what draws pictures when all is well."""
    try:
        work()
    except LMaaSError as error:
        assert len(str(error)) < 2000


def as_stored(record: Any, experiment: str) -> dict[str, Any]:
    return {"experiment": experiment, **record.to_json()}


OLD_CELL: dict[str, Any] = {
    "format": 1,
    "task": "sst2",
    "method": "bbt",
    "seed": 8,
    "conditions": {
        "model": "m",
        "layout": "paper",
        "preset": "default",
        "shots": 16,
        "test_rows": 3,
        "left_out": {"train": 0, "validation": 0, "test": 1},
        "rows": {"train": "x", "validation": "y", "test": "z"},
        "settings": {"learning_rate": 1.0},
    },
    "value": 0.5,
    "details": {"spent": {"calls": 3}},
}
"""As files of format 1 are."""


@pytest.mark.parametrize("name", ["cell.json", "run.jsonl"])
@given(data=st.data())
@fuzzed
def test_any_damage_to_a_cell_of_the_table_is_told(tmp_path: Path, name: str, data: Any) -> None:
    from lmaas_tune.lab.paper import TABLE, read_table, table_text
    from lmaas_tune.lab.store import Store

    cell = OLD_CELL
    if name == "run.jsonl":
        (tmp_path / "old.jsonl").write_text(json.dumps(OLD_CELL))
        cell = as_stored(Store(tmp_path / "old.jsonl", TABLE).found()[0][1], "table")
    content = data.draw(damaged(json.loads(json.dumps(cell))))
    for seed, own in ((8, content), (13, {**cell, "seed": 13})):
        folder = tmp_path / "sst2" / "bbt" / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(own))
    answered(lambda: table_text(read_table(tmp_path).cells))


def test_a_run_of_the_table_may_have_the_label_of_a_backend(tmp_path: Path) -> None:
    from lmaas_tune.lab.paper import TABLE, read_table
    from lmaas_tune.lab.store import Store

    (tmp_path / "old.jsonl").write_text(json.dumps(OLD_CELL))
    run = as_stored(Store(tmp_path / "old.jsonl", TABLE).found()[0][1], "table")
    (tmp_path / "run.jsonl").write_text(json.dumps({**run, "backend": "mine", "value": 0.5}))
    (record,) = read_table(tmp_path / "run.jsonl").records
    assert "backend='mine'" in repr(record)
    assert "value=0.5" in repr(record)


# What else is handed in


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "work",
    [
        lambda folder: label_words(DEEP),
        lambda folder: label_words('{"a":' * 100_000),
        lambda folder: label_words('{"a": NaN, "b": "x"}'),
        lambda folder: parse_options('{"a":' * 100_000),
        lambda folder: parse_options('{"a": NaN}'),
        lambda folder: read_examples(folder / "deep.json"),
    ],
)
def test_json_that_is_nested_too_deeply_is_told(tmp_path: Path, work: Any) -> None:
    (tmp_path / "deep.json").write_text(DEEP)
    assert isinstance(answered(lambda: work(tmp_path)), InputError)


@pytest.mark.parametrize(("name", "text"), [("t.json", DEEP), ("t.toml", f"a = {DEEP}")])
def test_a_file_of_tasks_that_is_nested_too_deeply_is_told(
    tmp_path: Path, name: str, text: str
) -> None:
    from lmaas_tune.lab.tasks import read_tasks

    (tmp_path / name).write_text(text)
    assert "nested too deeply" in str(answered(lambda: read_tasks(tmp_path / name)))


def test_a_limit_of_five_thousand_digits_is_told(tmp_path: Path) -> None:
    from lmaas_tune.service.key_quota import DEFAULT_QUOTA
    from lmaas_tune.service.keys import read_keys

    (tmp_path / "keys").write_text(f"alice {'k' * 30} requests={'9' * 5000}")
    assert "up to 18 digits" in str(
        answered(lambda: read_keys(tmp_path / "keys", quota=DEFAULT_QUOTA))
    )


def test_a_report_that_somebody_wrote_over_is_made_again(tmp_path: Path) -> None:
    from lmaas_tune.cli.tune_report import _load_report

    for text in (DEEP, "[]", '{"spent": 3}', '{"spent": [1]}', '{"spent": {"calls": NaN}}'):
        (tmp_path / "report.json").write_text(text)
        assert _load_report(tmp_path) is None


@given(content=anything)
@fuzzed
def test_plain_values_are_finite_and_of_64_bits(content: Any) -> None:
    try:
        value = parse_json(json.dumps(content))
        checked(float, value, "it")
    except InputError:
        return
    assert np.isfinite(np.float64(value))


def test_vectors_in_a_subspace_are_base64(tmp_path: Path) -> None:
    content = OWN.subspace.to_json()
    assert Subspace.from_json(content).digest == OWN.subspace.digest
    content["start"]["vectors"] = base64.b64encode(b"abc").decode()
    with pytest.raises(InputError, match="this describes no subspace"):
        Subspace.from_json(content)


def test_a_text_is_no_list() -> None:
    with pytest.raises(InputError, match="curve is '000' and takes a list"):
        checked(Sequence[int], "000", "curve")
