"""The command line as a user meets it: what it prints, how it fails, how it survives."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lmaas_tune import PermanentError, SoftPrompt, TextPrompt, TunedPrompt
from lmaas_tune.cli import list_commands, main
from lmaas_tune.testing.toy import ToyBackend

WORDS = {"good": ["great", "lovely", "superb"], "bad": ["awful", "dull", "poor"]}
SMALL = ["--budget", "calls=60", "--intrinsic-dim", "6", "--seed", "13", "--optimizer", "cma"]
ONE_START = ["--prompt-init", "so very"]


def write_rows(path: Path, count: int, *, label_field: str = "label") -> Path:
    labels = sorted(WORDS)
    with path.open("w") as file:
        for i in range(count):
            label = labels[i % 2]
            words = WORDS[label]
            text = f"{words[i % 3]} {path.stem} film {i % 4}, {words[i // 2 % 3]} cast"
            file.write(json.dumps({"text": text, label_field: label}) + "\n")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with train, validation and test files."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("train", 8), ("validation", 8), ("test", 12)):
        write_rows(tmp_path / f"{name}.jsonl", count)
    return tmp_path


def tune(*more: str) -> list[str]:
    return ["tune", "--backend", "toy", "--train", "train.jsonl", *more]


@dataclass
class Printed:
    code: int
    out: str
    err: str

    @property
    def content(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Printed]:
    def call(*argv: str) -> Printed:
        code = main(list(argv))
        return Printed(code, *capsys.readouterr())

    return call


Run = Callable[..., Printed]


# -- what it gives ---------------------------------------------------------------------------


def test_tune_gives_scripts_one_object_with_all_they_rely_on(folder: Path, run: Run) -> None:
    printed = run(
        *tune("--validation", "validation.jsonl", "--test", "test.jsonl", *SMALL),
        *("--template", "{text} {prompt} It was {label}"),
        *("--labels", '{"bad": "terrible", "good": "great"}'),
        *("--optimizer", "cma", "--prompt-length", "5", "--out", "run", "--json"),
        *ONE_START,
    )
    assert printed.code == 0
    content = printed.content
    for name in ("baseline", "start", "tuned"):
        low, high = content[name]["interval"]
        assert low < content[name]["accuracy"] < high or content[name]["accuracy"] in (0, 1)
        assert content[name]["majority"] == 0.5
        assert content[name]["rows"] == 12
    assert content["verdict"].startswith("The search ")
    assert content["spent"]["calls"] == 55  # the start, and 6 generations of 9
    assert content["spent"]["sequences"] == 55 * (8 + 8)  # the rows of both files judge together
    assert content["spent"]["validation_calls"] == 0
    assert content["spent_on_test"]["sequences"] == 2 * 12
    assert content["stop_reason"].startswith("budget calls=60")
    assert content["finished"] is True
    assert content["seed"] == 13
    assert content["identity"].startswith("toy width=16")
    assert content["versions"]["lmaas-tune"]
    for name in ("train", "validation"):  # and not the scores of all words
        assert set(content["best"][name]) == {"loss", "accuracy"}
    assert content["settings"]["prompt_length"] == 5
    assert content["out"] == str(folder / "run")
    assert TunedPrompt.load("run").digest == content["prompt_digest"]


def test_layers_are_searched_one_after_another_and_the_prompt_is_used_again(
    folder: Path, run: Run
) -> None:
    deep = ["--backend-options", "layers=3", "--projection", "normal"]
    rounds = ["--intrinsic-dim", "6", "--optimizer-options", "population=5"]
    command = tune(*deep, *rounds, *ONE_START, "--budget", "calls=60", "--out", "run", "--json")
    content = run(*command, "--deep", "0,2").content
    assert content["settings"]["deep"] == [0, 2]
    assert content["spent"]["calls"] == 2 + 5 * 2 * 5  # the start, the measuring, five rounds
    assert content["stop_reason"].startswith("rounds: 5 over 2 layers")
    used = run("predict", "--prompt", "run", "--backend", "toy", *deep[:2], "--text", "a film")
    assert used.code == 0
    shallow = run("predict", "--prompt", "run", "--backend", "toy", "--text", "a film")
    assert "goes through 3 layers, and toy" in shallow.err


def test_the_command_that_is_shown_works_with_several_fields_too(folder: Path, run: Run) -> None:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    several = [json.dumps({**row, "body": row["text"]}) for row in rows]
    (folder / "several.jsonl").write_text("\n".join(several))
    for train in ("train.jsonl", "several.jsonl"):
        command = ["tune", "--backend", "toy", "--train", train, "--budget", "calls=30"]
        shown = run(*command, "--out", f"run-{train}").out.strip().splitlines()[-1]
        program, *words = shlex.split(shown)
        assert program == "lmaas-tune"
        assert run(*words).code == 0


def test_a_command_with_a_wrong_letter_is_named(folder: Path, run: Run) -> None:
    printed = run("tun", "--train", "train.jsonl")
    assert printed.code == 2
    assert "no 'tun'; did you mean 'tune'?" in printed.err


def test_without_test_rows_before_and_after_are_null(folder: Path, run: Run) -> None:
    content = run(*tune(*SMALL, "--json")).content
    assert content["baseline"] is content["start"] is content["tuned"] is None
    assert content["out"] is None


def test_baseline_is_the_starting_words_as_the_model_is(folder: Path, run: Run) -> None:
    flags = ["--test", "test.jsonl", *ONE_START, *SMALL]
    plain = run(*tune(*flags, "--head", "none", "--json")).content
    fitted = run(*tune(*flags, "--json")).content
    assert plain["baseline"] == plain["start"] == fitted["baseline"]
    assert fitted["start"] != fitted["baseline"]


def test_flags_of_the_head_reach_the_settings(folder: Path, run: Run) -> None:
    flags = ["--validation", "validation.jsonl", "--head", "affine", "--head-words", "7"]
    flags += ["--averaged", "1", "--validation-rows", "select", *ONE_START, *SMALL]
    content = run(*tune(*flags, "--json")).content
    expected = {"head": "affine", "head_words": 7, "averaged": 1, "validation_rows": "select"}
    assert content["settings"].items() >= expected.items()
    assert content["spent"]["sequences"] == (55 + 7) * 8  # the start, and 6 generations of 9
    assert content["spent"]["validation_calls"] == 7
    assert_refused(run(*tune("--calibration", "none", *SMALL)), "--calibration")


@pytest.mark.parametrize("head", ["none", "bias"])
def test_the_start_with_its_head_is_told_where_it_has_one(
    folder: Path, run: Run, head: str
) -> None:
    printed = run(*tune("--test", "test.jsonl", "--head", head, *ONE_START, *SMALL))
    assert ("starting words with their head" in printed.out) == (head != "none")


def test_people_read_what_happened_and_a_next_command_that_works(folder: Path, run: Run) -> None:
    printed = run(*tune("--test", "test.jsonl", "--out", "a run", *SMALL))
    assert printed.out.startswith("Done. Budget calls=60")
    for words in ("On 12 test rows", "starting words, as the model is", "tuned prompt", "Spent: "):
        assert words in printed.out
    command = shlex.split(printed.out.strip().splitlines()[-1])
    assert command[:4] == ["lmaas-tune", "predict", "--prompt", "a run"]
    used = run(*command[1:])
    assert used.code == 0
    assert used.out.split("\t")[0] in WORDS


def test_a_finished_run_resumes_to_the_same_object_and_pays_nothing(folder: Path, run: Run) -> None:
    command = tune("--test", "test.jsonl", "--out", "run", *SMALL, "--json")
    first = run(*command)
    again = run(*command, "--resume", "--backend-options", "")
    assert again.content == first.content


def test_a_finished_run_is_tested_anew_on_rows_with_other_labels(folder: Path, run: Run) -> None:
    command = tune("--test", "test.jsonl", "--out", "run", "--json", *SMALL)
    first = run(*command).content["tuned"]["accuracy"]
    rows = [json.loads(line) for line in Path("test.jsonl").read_text().splitlines()]
    swapped = [{**r, "label": "good" if r["label"] == "bad" else "bad"} for r in rows]
    Path("test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in swapped))
    assert run(*command, "--resume").content["tuned"]["accuracy"] == pytest.approx(1 - first)


def test_test_rows_that_the_run_has_seen_are_told(folder: Path, run: Run) -> None:
    rows = Path("train.jsonl").read_text().splitlines(keepends=True)
    Path("test.jsonl").write_text('{"text": "unseen", "label": "good"}\n' * 3 + rows[0])
    printed = run(*tune("--test", "test.jsonl", *SMALL))
    assert "note: test: 1 of 4 rows are training or validation rows too" in printed.err


def test_an_argument_that_is_no_text_is_refused_before_anything_is_paid(
    folder: Path, run: Run
) -> None:
    assert_refused(run(*tune("--out", "r\udcff")), "is half a character")


def test_a_resumed_run_with_more_budget_goes_on(folder: Path, run: Run) -> None:
    flags = ["--intrinsic-dim", "6", *ONE_START, "--prompt-init", "it was", "--json"]
    flags += ["--optimizer", "cma"]
    command = tune("--test", "test.jsonl", "--out", "run", *flags)
    first = run(*command, "--budget", "calls=20").content
    more = run(*command, "--budget", "calls=60", "--resume").content
    whole = run(*tune(*flags, "--budget", "calls=60")).content
    assert first["spent"]["calls"] < more["spent"]["calls"] == whole["spent"]["calls"]
    assert more["prompt_digest"] == whole["prompt_digest"]


def test_flags_replace_what_the_preset_says_and_nothing_else(folder: Path, run: Run) -> None:
    flags = ["--preset", "repo-head", "--insertion", "concat", "--projection", "uniform"]
    content = run(*tune(*flags, "--budget", "calls=50", "--prompt-length", "3", "--json")).content
    settings = content["settings"]
    assert settings["insertion"] == "concat"
    assert settings["budget"] == "calls=50"
    assert settings["start"] == "vocabulary"
    assert settings["optimizer_options"] == {
        "population": 20,
        "sigma0": 1.0,
        "step_rule": "csa",
    }


def test_the_best_of_several_starting_words_is_the_start(folder: Path, run: Run) -> None:
    each = [["--prompt-init", words] for words in ("so very", "not at all", "it was")]
    flags = [*SMALL, "--test", "test.jsonl", "--json"]
    alone = [run(*tune(*flags, *words)).content for words in each]
    together = run(*tune(*flags, *(word for words in each for word in words))).content
    assert together["start"] == alone[0]["start"]  # the first, with which the best is compared
    assert together["settings"]["prompt_init"] == ["so very", "not at all", "it was"]
    assert alone[0]["settings"]["prompt_init"] == ["so very"]


def test_starting_words_bring_their_start_and_their_length(folder: Path, run: Run) -> None:
    flags = ["--preset", "repo-head", "--insertion", "concat", "--projection", "uniform"]
    words = ["--prompt-init", "Overall, the movie is", "--intrinsic-dim", "6"]
    run(*tune(*flags, *words, "--budget", "calls=21", "--out", "run"))
    prompt = TunedPrompt.load("run").prompt
    assert isinstance(prompt, SoftPrompt)
    assert prompt.length == 4


def test_another_optimizer_leaves_the_presets_options_behind(folder: Path, run: Run) -> None:
    flags = ["--preset", "repo-head", "--insertion", "concat", "--projection", "uniform"]
    flags += ["--optimizer", "random", "--optimizer-options", "population=7"]
    content = run(*tune(*flags, "--budget", "calls=21", "--json")).content
    assert content["settings"]["optimizer"] == "random"
    assert content["settings"]["optimizer_options"] == {"population": 7}
    assert content["spent"]["calls"] == 21


def test_a_search_can_start_from_a_saved_prompt(folder: Path, run: Run) -> None:
    flags = ["--test", "test.jsonl", *SMALL, "--averaged", "1", "--json"]
    first = run(*tune(*flags, "--out", "run")).content
    flags += ["--start-from", "run", "--alpha", "0.1"]
    second = run(*tune(*flags)).content
    assert second["start"] == first["tuned"]


TEXT = ["--prompt", "text", "--budget", "calls=60", "--seed", "13"]


def test_a_text_prompt_is_printed_to_be_pasted_anywhere(folder: Path, run: Run) -> None:
    flags = [*TEXT, "--test", "test.jsonl", "--out", "run"]
    content = run(*tune(*flags, "--json")).content
    prompt = TunedPrompt.load("run").prompt
    assert prompt == TextPrompt(content["prompt_text"])
    assert content["settings"]["prompt"] == "text"
    assert content["start"]["rows"] == 12
    assert f"\n\n{prompt.text}\n\n" in run(*tune(*flags, "--resume")).out
    assert run(*tune(*SMALL, "--json")).content["prompt_text"] is None


def test_a_text_prompt_takes_its_words_from_where_it_is_told(folder: Path, run: Run) -> None:
    (folder / "starts.txt").write_text("I say\n\n We say \n", encoding="utf-8-sig")
    (folder / "words.txt").write_text("so\nfar\n")
    flags = ["--instructions", "starts.txt", "--prompt-words", "words.txt", "--word-slots", "2"]
    content = run(*tune(*TEXT[2:], *flags, "--json")).content
    first, second, *words = content["prompt_text"].split()
    assert (first, second) in [("I", "say"), ("We", "say")]
    assert set(words) <= {"so", "far"}
    assert content["settings"]["prompt_init"] == ["I say", "We say"]
    assert content["settings"]["text"] == {
        "words": ["so", "far"],
        "slots": 2,
        "demonstrations": 0,
    }
    told = run(*tune(*TEXT, "--prompt-words", "train", "--json")).content
    assert told["settings"]["text"]["words"] == "train"


def test_training_rows_can_stand_in_a_text_prompt(folder: Path, run: Run) -> None:
    printed = run(*tune("--demonstrations", "4", "--budget", "calls=60", "--json"))
    assert printed.content["prompt_text"].count("\nAnswer: ") == 4
    assert "note: 4 of the training rows are demonstrations" in printed.err


def test_limits_in_money_end_a_run(folder: Path, run: Run) -> None:
    flags = ["--price-in", "100", "--price-out", "10", "--intrinsic-dim", "6", "--json"]
    content = run(*tune(*flags, "--budget", "money=2")).content
    assert content["stop_reason"].startswith("budget money=2")
    tokens, rows = content["spent"]["tokens"], content["spent"]["sequences"]
    assert content["spent"]["money"] == pytest.approx((100 * tokens + 10 * rows) / 1e6)
    refused = run(*tune(*flags, "--budget", "money=0.2", "--out", "poor"))
    assert refused.code == 1
    assert "not one prompt was scored on all rows: raise the budget" in refused.content["error"]
    assert [path.name for path in Path("poor").iterdir()] == ["journal.jsonl"]


def test_a_cache_answers_the_second_run(folder: Path, run: Run) -> None:
    flags = [*SMALL, *ONE_START, "--cache", "answers.sqlite", "--json"]
    first, second = run(*tune(*flags)).content, run(*tune(*flags)).content
    assert first["spent"]["requests"] == 55
    assert second["spent"]["requests"] == 0
    assert second["spent"]["hits"] == 55
    assert second["prompt_digest"] == first["prompt_digest"]


def test_csv_holds_a_line_a_generation(folder: Path, run: Run) -> None:
    run(*tune(*SMALL, *ONE_START, "--csv", "steps.csv"))
    with Path("steps.csv").open(newline="") as file:
        calls = [int(row["calls"]) for row in csv.DictReader(file)]
    assert calls == [1, 10, 19, 28, 37, 46, 55]


def test_rows_may_call_their_label_otherwise(folder: Path, run: Run) -> None:
    write_rows(folder / "train.jsonl", 8, label_field="class")
    assert run(*tune("--label-field", "class", *SMALL)).code == 0


def test_evaluate_gives_what_tune_gave(folder: Path, run: Run) -> None:
    tuned = run(*tune("--test", "test.jsonl", "--out", "run", *SMALL, "--json")).content["tuned"]
    command = ["evaluate", "--prompt", "run", "--backend", "toy", "--test", "test.jsonl"]
    content = run(*command, "--json").content
    assert {name: content[name] for name in tuned} == tuned
    assert "of 12 rows right" in run(*command).out


def test_predict_labels_texts_and_files_alike(folder: Path, run: Run) -> None:
    run(*tune("--template", "{text} {prompt} {label}", "--out", "run", *SMALL))
    rows = [json.loads(line) for line in Path("test.jsonl").read_text().splitlines()]
    command = ["predict", "--prompt", "run", "--backend", "toy"]
    from_file = run(*command, "--input", "test.jsonl", "--json").content["predictions"]
    texts = [word for row in rows for word in ("--text", row["text"])]
    assert run(*command, *texts, "--json").content["predictions"] == from_file
    assert len(from_file) == 12
    for prediction in from_file:
        assert sum(prediction["probabilities"].values()) == pytest.approx(1)
        assert prediction["label"] == max(
            prediction["probabilities"], key=prediction["probabilities"].__getitem__
        )
    lines = run(*command, *texts).out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [p["label"] for p in from_file]


def test_a_terminal_without_the_character_gets_its_code(folder: Path, run: Run) -> None:
    run(*tune("--template", "{text} {prompt} {label}", "--out", "run", *SMALL))
    command = process("predict", "--prompt", "run", "--backend", "toy", "--text", "gut \u2764 gut")
    shown = []
    for encoding, more in (("cp1252", []), ("cp1252", ["--json"]), ("utf-8", ["--json"])):
        done = subprocess.run(
            command + more,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=60,
            check=True,
        )
        shown.append(done.stdout.decode(encoding))
    assert "gut \\u2764 gut" in shown[0]
    labelled = [json.loads(text)["predictions"] for text in shown[1:]]
    assert labelled[0] == labelled[1]


def test_a_text_stands_for_the_only_field_whatever_its_name(folder: Path, run: Run) -> None:
    lines = Path("train.jsonl").read_text().replace('"text"', '"sentence"')
    Path("train.jsonl").write_text(lines)
    run(*tune("--out", "run", *SMALL))
    assert run("predict", "--prompt", "run", "--backend", "toy", "--text", "a film").code == 0


def test_optimizers_are_listed_each_with_a_line(run: Run) -> None:
    listed = run("optimizers", "--json").content["optimizers"]
    assert {"cma", "random", "nevergrad:<Name>"} <= {offer["name"] for offer in listed}
    assert all(offer["description"] for offer in listed)
    assert [line.split()[0] for line in run("optimizers").out.splitlines()] == [
        offer["name"] for offer in listed
    ]


def test_backends_are_listed_with_their_use(run: Run) -> None:
    listed = {offer["name"]: offer for offer in run("backends", "--json").content["backends"]}
    assert listed["toy"]["usable"] is True
    assert "hf" in listed


def test_doctor_shows_versions_and_asks_a_backend(run: Run) -> None:
    content = run("doctor", "--backend", "toy", "--json").content
    assert content["python"] == sys.version.split()[0]
    assert {"numpy", "cma", "nevergrad"} <= {package["name"] for package in content["packages"]}
    assert set(content["extras"]) >= {"hf", "vllm", "compare", "plot", "tensorboard"}
    compare = {p["name"] for p in content["packages"] if p["extra"] == "compare"}
    assert {"jinja2", "joblib", "scipy"} <= compare
    assert ("tomli" in compare) is (sys.version_info < (3, 11))  # only where it is of use
    assert content["probe"]["capabilities"]["soft_prompt_width"] == 16
    assert content["probe"]["identity"].startswith("toy")
    text = run("doctor", "--backend", "toy", "--backend-options", "width=8,seed=3").out
    assert "bounds       none of 2 scores" in text
    assert "soft prompts of width 8" in text
    assert "seed=3" in text


def test_doctor_fails_where_what_was_asked_for_does_not_work(run: Run) -> None:
    printed = run("doctor", "--backend", "tyo", "--json")
    assert printed.code == 2
    assert "did you mean 'toy'" in printed.content["error"]


def test_doctor_tells_what_cannot_work_from_what_fails(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("doctor", "--backend", "nosuch").code == 2
    assert run("doctor", "--backend", "toy", "--backend-options", "width=0").code == 2
    monkeypatch.setattr(ToyBackend, "score", failing(ToyBackend.score, lambda *_: True))
    assert run("doctor", "--backend", "toy").code == 1


def test_notes_are_not_on_standard_output(folder: Path, run: Run) -> None:
    text = Path("train.jsonl").read_text().replace('"bad"', "0").replace('"good"', "1")
    Path("train.jsonl").write_text(text)
    printed = run(*tune(*SMALL, "--json"))
    assert printed.content["finished"]
    assert printed.err.startswith("note: the labels 0, 1 are numbers")


def test_a_note_comes_once_and_a_warning_for_programmers_never(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(name: str) -> str:
        warnings.warn("slow today", stacklevel=1)
        warnings.warn("gone in 2.0", FutureWarning, stacklevel=1)
        return name

    monkeypatch.setattr(list_commands, "describe_optimizer", describe)
    assert run("optimizers").err == "note: slow today\n"


# -- what it refuses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        ("", [], "it has no rows"),
        ('{"text": "a", "label": "x"}\nnot json\n', [], "line 2: not JSON"),
        ('{"txt": "a", "label": "x"}\n{"txt": "b", "label": "y"}\n', ["--template",
         "{text} {prompt} {label}"], "no field 'text', which the template asks for, or no text in"),
        ('{"text": "a", "label": "x"}\n{"text": "b"}\n', [], "row 2: no label"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n', [], "two labels or more"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n', ["--labels",
         '{"x": "no", "y": "yes"}'], "every row has the label 'x'"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "z"}\n', ["--labels",
         '{"x": "no", "y": "yes"}'], "has the label 'z', which has no label word"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named(
    folder: Path, run: Run, rows: str, more: list[str], says: str
) -> None:
    Path("train.jsonl").write_text(rows)
    assert_refused(run(*tune(*more)), says)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--optimizer", "cmaa"], "did you mean 'cma'?"),
        (["--optimizer", "nevergrad:NGOptt"], "NGOpt"),
        (
            ["--optimizer-options", "populaton=3"],
            "no option 'populaton'; did you mean 'population'?",
        ),
        (["--optimizer-options", "population"], "'population' is no name=value"),
        (["--optimizer-options", "population=8,population=9"], "population is given twice"),
        (["--labels", '{"bad": "it", "good": "it"}'], "share the word 'it'"),
        (["--labels", '{"bad": "no"'], "is not JSON"),
        (["--labels", '["bad", "good"]'], "give an object"),
        (
            ["--budget", "calls=5"],
            "budget calls=5: 5 left, the start with the first generation needs",
        ),
        (["--budget", "call=5"], "did you mean 'calls'?"),
        (["--template", "{text} {label}"], "has {prompt} 0 times"),
        (["--preset", "defautl"], "did you mean 'default'?"),
        (["--alpha", "-1"], "alpha=-1.0: it must be positive"),
        (["--deep", "top"], "deep='top': it takes 'all', or the numbers of layers"),
        (["--deep", "all"], "toy width=16 rank=4 seed=0 max_tokens=512 takes no deep prompts"),
        (["--prompt-length", "many"], "invalid int value: 'many'"),
        (["--backend", "toi"], "did you mean 'toy'?"),
        (["--model", "m"], "takes no model"),
        (["--backend-options", "wdth=3"], "did you mean 'width'?"),
        (["--backend-options", "max_tokens=3"], "is longer than the 3 that toy reads"),
        (["--backend-options", '{"width": 3, "wdth": 3}'], "did you mean 'width'?"),
        (["--backend-options", '{"width": 3'], "not JSON"),
        (["--price-in", "-1"], "price input=-1.0"),
        (["--resume"], "give --out"),
        (["--start-from", "nowhere"], "no saved prompt there"),
        (["--start", "zero", "--prompt-init", "so"], "exclude each other"),
        (["--start-from", ".", "--start", "zero"], "exclude each other"),
        (["--instructions", "nowhere.txt"], "nowhere.txt: cannot be read as UTF-8 text"),
        (["--prompt-words", "odd.jsonl", "--prompt", "soft"], "prompt='soft' does not use"),
        (["--instructions", "odd.jsonl", "--prompt-init", "so"], "put all into the file"),
        (["--instructions", "odd.jsonl", "--start-from", "."], "--instructions and --start-from"),
        (["--instructions", "odd.jsonl", "--start", "zero"], "--instructions and --start zero"),
        (["--word-slots", "-1"], "slots=-1: it must be 0 or more"),
        (["--demonstrations", "8"], "takes 4 of the 4 rows with the label"),
        (["--test", "odd.jsonl"], "test: row 1 has the label 'odd', which has no label word"),
        (["--bugdet=calls=3"], "unrecognized arguments: --bugdet=calls=3; for --bugdet, did you"),
        (["--bugdet", "calls=3"], "did you mean '--budget'"),
        (["stray"], "unrecognized arguments: stray (lmaas-tune tune --help lists"),
        (["--workers", "many"], "workers='many': it takes a whole number from 1, or 'adaptive'"),
        (["--requests-per-minute", "0"], "requests_per_minute=0"),
    ],
)
def test_flags_that_cannot_be_used_are_named(
    folder: Path, run: Run, more: list[str], says: str
) -> None:
    Path("odd.jsonl").write_text('{"text": "a", "label": "odd"}\n')
    assert_refused(run(*tune(*more)), says)


def test_bad_test_rows_are_refused_before_anything_is_paid(folder: Path, run: Run) -> None:
    Path("odd.jsonl").write_text('{"text": "a", "label": "odd"}\n')
    assert_refused(run(*tune("--test", "odd.jsonl", "--out", "run")), "'odd'")
    assert not Path("run").exists()


def assert_refused(printed: Printed, says: str, *, code: int = 2) -> None:
    assert printed.code == code
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert says in printed.err


def test_no_command_at_all_is_refused_in_one_line(run: Run) -> None:
    assert_refused(run(), "COMMAND")


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_paid(
    folder: Path, run: Run
) -> None:
    printed = run(*tune("--out", "train.jsonl/run", *SMALL))
    assert_refused(printed, "train.jsonl/run/journal.jsonl: the journal cannot be opened", code=1)
    assert "nothing was paid" in printed.err


def test_a_file_that_cannot_be_written_is_named(folder: Path, run: Run) -> None:
    assert_refused(
        run(*tune("--csv", ".", *SMALL)), ".: the log of the run cannot be written", code=1
    )


def test_a_report_that_cannot_be_kept_is_printed_all_the_same(folder: Path, run: Run) -> None:
    (folder / "out" / "report.json.part").mkdir(parents=True)
    printed = run(*tune("--test", "test.jsonl", "--out", "out", "--json", *SMALL))
    assert printed.code == 0
    assert printed.content["tuned"]["rows"] == 12
    assert "report.json: the report cannot be saved" in printed.err


def test_resuming_where_there_is_no_run_says_that_a_new_one_begins(folder: Path, run: Run) -> None:
    printed = run(*tune("--out", "ouch", "--resume", "--json", *SMALL))
    assert printed.code == 0
    assert "there is no run to resume, so a new one starts" in printed.err


def test_a_folder_that_holds_a_run_is_not_overwritten(folder: Path, run: Run) -> None:
    run(*tune("--out", "run", *SMALL))
    before = Path("run/journal.jsonl").read_bytes()
    assert_refused(run(*tune("--out", "run", *SMALL)), "--resume")
    assert Path("run/journal.jsonl").read_bytes() == before


def test_a_prompt_for_several_fields_asks_for_rows(folder: Path, run: Run) -> None:
    two = [{"premise": "a b", "claim": "c", "label": label} for label in ("yes", "no")]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in two))
    run(*tune("--out", "run", *SMALL))
    printed = run("predict", "--prompt", "run", "--backend", "toy", "--text", "a")
    assert_refused(printed, "this prompt's has premise, claim: give rows with --input")


def test_a_model_that_does_not_exist_is_named(folder: Path, run: Run) -> None:
    command = ["tune", "--train", "train.jsonl", "--backend", "hf", "--model", "no/such/folder"]
    assert_refused(run(*command), "no/such/folder")


def test_errors_are_json_too_where_json_was_asked(folder: Path, run: Run) -> None:
    for command in (tune("--optimizer", "cmaa"), ["tune"], ["nothing"]):
        printed = run(*command, "--json")
        assert printed.code == 2
        assert f"error: {printed.content['error']}\n" == printed.err


def test_a_fault_of_the_program_shows_no_traceback_unless_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> str:
        raise RuntimeError(f"bad {name}")

    monkeypatch.setattr(list_commands, "describe_optimizer", fail)
    assert_refused(run("optimizers"), "unexpected RuntimeError: bad cma", code=1)
    assert "Traceback" in run("optimizers", "--traceback").err


def test_a_journal_whose_last_line_was_cut_resumes_to_the_same_prompt(
    folder: Path, run: Run
) -> None:
    command = tune("--out", "run", *SMALL, "--json")
    whole = run(*command).content
    journal = Path("run/journal.jsonl")
    journal.write_bytes(journal.read_bytes()[:-40])
    resumed = run(*command, "--resume").content
    assert resumed["prompt_digest"] == whole["prompt_digest"]
    assert counted(resumed) == counted(whole)


def test_a_journal_damaged_in_the_middle_is_refused_with_the_remedy(folder: Path, run: Run) -> None:
    command = tune("--out", "run", *SMALL)
    run(*command)
    journal = Path("run/journal.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b"garbage\n", *lines[4:]]))
    printed = run(*command, "--resume")
    assert_refused(printed, "journal.jsonl, line 4", code=1)
    assert "cut the file to its first 3 lines" in printed.err


def test_a_backend_that_fails_in_mid_run_loses_nothing(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tune("--out", "run", *SMALL, "--json")
    with monkeypatch.context() as patch:
        patch.setattr(ToyBackend, "score", failing(ToyBackend.score, lambda n, _: n == 3))
        printed = run(*command)
    assert printed.code == 1
    assert printed.content["error"] == "the provider is down"
    (hint,) = [line for line in printed.err.splitlines() if line.startswith("note: ")]
    resumed = run(*shlex.split(hint.partition("to resume: ")[2])[1:]).content
    whole = run(*tune(*SMALL, "--json")).content
    failed = {"requests": counted(whole)["requests"] + 1}
    assert counted(resumed) == counted(whole) | failed
    assert resumed["prompt_digest"] == whole["prompt_digest"]


def test_a_report_of_other_averaged_prompts_is_not_taken(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tune("--out", "run", "--test", "test.jsonl", *SMALL, "--json", *ONE_START)
    command += ["--prompt-init", "so so"]
    monkeypatch.setattr("lmaas_tune.prepared_run._clearly_higher", lambda *_, **errors: True)
    kept = run(*command).content
    monkeypatch.setattr("lmaas_tune.prepared_run._clearly_higher", lambda *_, **errors: False)
    averaged = run(*command, "--resume").content
    assert (kept["spent"]["calls"], kept["best"]) == (averaged["spent"]["calls"], averaged["best"])
    assert len(TunedPrompt.load("run").members) == 2
    evaluate = ["evaluate", "--backend", "toy", "--prompt", "run", "--test", "test.jsonl"]
    assert run(*evaluate, "--json").content["loss"] == averaged["tuned"]["loss"]
    assert averaged["tuned"]["loss"] != kept["tuned"]["loss"]


def test_a_test_that_fails_leaves_the_prompt_and_is_paid_alone_later(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tune("--test", "test.jsonl", "--out", "run", *SMALL, "--json")
    with monkeypatch.context() as patch:
        of_the_test = failing(ToyBackend.score, lambda _, requests: len(requests[0].batch) == 12)
        patch.setattr(ToyBackend, "score", of_the_test)
        printed = run(*command)
    assert printed.code == 1
    assert "note: the search is done and its prompt saved in run" in printed.err
    with monkeypatch.context() as patch:
        of_the_search = failing(ToyBackend.score, lambda _, requests: len(requests[0].batch) == 8)
        patch.setattr(ToyBackend, "score", of_the_search)
        assert run(*command, "--resume").content["tuned"]["rows"] == 12


def failing(score: Any, when: Callable[[int, Any], bool]) -> Any:
    """A backend's `score` that fails for the n-th call, or for requests, where `when` says so."""
    calls = []

    def fail_or_score(self: ToyBackend, requests: Any, /) -> Any:
        calls.append(requests)
        if when(len(calls), requests):
            raise PermanentError("the provider is down")
        return score(self, requests)

    return fail_or_score


# -- real processes --------------------------------------------------------------------------


def process(*argv: str, code: str = "pass") -> list[str]:
    start = f"import sys; {code}; from lmaas_tune.cli import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", start, *argv]


def test_without_torch_the_extra_is_named(folder: Path) -> None:
    command = ["tune", "--train", "train.jsonl", "--backend", "hf", "--model", "m"]
    blocked = process(*command, code="sys.modules['torch'] = None")
    done = subprocess.run(blocked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "pip install 'lmaas-tune[hf]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("argv", [["--help"], ["optimizers"], ["tune", "--help"]])
def test_help_and_lists_import_nothing_heavy(argv: list[str]) -> None:
    code = "import atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    done = subprocess.run(
        process(*argv, code=code), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    heavy = {"torch", "transformers", "pandas", "nevergrad", "cma", "matplotlib", "scipy"}
    assert "lmaas_tune.cli.tune" in done.stderr.split()
    assert not heavy & set(done.stderr.split())


def test_a_reader_that_goes_away_is_no_error() -> None:
    child = subprocess.Popen(
        process("optimizers"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    assert child.stderr.read() == ""
    child.stderr.close()
    child.wait(timeout=60)


LONG = ["--budget", "calls=400", "--intrinsic-dim", "6", "--seed", "5", "--optimizer", "cma"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_rows(folder / "train.jsonl", 8)
    write_rows(folder / "validation.jsonl", 8)
    subprocess.run(long_run(), cwd=folder, check=True, timeout=120, capture_output=True)
    return folder / "run"


def long_run(*more: str) -> list[str]:
    return process(*tune("--validation", "validation.jsonl", "--out", "run", *LONG, *more))


@pytest.fixture
def started(folder: Path) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Starts the long run, and gives it once its journal holds so many lines."""
    children = []

    def start(lines: int) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            long_run(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # pytest itself may run where Ctrl-C is ignored, which children inherit
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        children.append(child)
        journal = folder / "run" / "journal.jsonl"
        while child.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
                return child
            os.sched_yield()
        pytest.fail(f"the run ended before its journal had {lines} lines: {child.communicate()}")

    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


Started = Callable[[int], "subprocess.Popen[str]"]


def counted(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content["spent"].items() if name != "seconds"}


def assert_same_run(folder: Path, other: Path) -> None:
    vectors = "prompt.safetensors"
    assert (folder / vectors).read_bytes() == (other / vectors).read_bytes()
    saved, expected = (json.loads((f / "prompt.json").read_text()) for f in (folder, other))
    assert counted(saved) == counted(expected)
    for content in (saved, expected):
        del content["spent"]["seconds"]
    assert saved == expected


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_the_run_and_says_how_to_resume(
    folder: Path, started: Started, uninterrupted: Path, number: signal.Signals
) -> None:
    child = started(6)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err == ""
    assert out.startswith("Interrupted after ")
    assert TunedPrompt.load("run").prompt.digest  # what was found so far can be used
    command = shlex.split(out.strip().splitlines()[-1])
    assert command[-1] == "--resume"
    done = subprocess.run(process(*command[1:]), timeout=120, capture_output=True, check=True)
    assert done.stdout.startswith(b"Done.")
    assert_same_run(folder / "run", uninterrupted)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("lines", [1, 3, 30])
def test_a_killed_run_resumes_to_the_same_prompt_at_the_same_price(
    folder: Path, started: Started, uninterrupted: Path, lines: int
) -> None:
    child = started(lines)
    child.kill()
    child.communicate(timeout=60)
    subprocess.run(long_run("--resume"), timeout=120, capture_output=True, check=True)
    assert_same_run(folder / "run", uninterrupted)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_is_json_too(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in mid-search, by the signal itself, where the third call would be paid."""
    score, calls = ToyBackend.score, []

    def interrupted(self: ToyBackend, requests: Any, /) -> Any:
        calls.append(requests)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, requests)

    monkeypatch.setattr(ToyBackend, "score", interrupted)
    printed = run(*tune("--out", "run", "--test", "test.jsonl", *SMALL, *ONE_START, "--json"))
    assert printed.code == 130
    content = printed.content
    assert content["finished"] is False
    assert content["tuned"] is None
    assert content["spent"]["calls"] == 10
    resumed = run(*shlex.split(content["resume"])[1:])
    assert resumed.code == 0
    assert resumed.content["spent"]["calls"] == 55


def test_rows_that_are_too_long_are_cut_in_every_command(folder: Path, run: Run) -> None:
    rows = Path("train.jsonl").read_text().splitlines()
    long = {**json.loads(rows[0]), "text": "good " * 3000}
    Path("train.jsonl").write_text("\n".join([json.dumps(long), *rows]))
    flags = (*SMALL, *ONE_START, "--out", "mine")
    refused = run(*tune(*flags))
    assert refused.code == 2 and "(--truncate N)" in refused.err
    tuned = run(*tune(*flags, "--truncate", "40"))
    note = "train: 1 row of 9 have more text than '{text:.40}\\n {prompt} {label}' reads"
    assert tuned.code == 0 and note in tuned.err.replace("Text: ", "")
    labelled = run(*predict("--input", "train.jsonl", "--output", "labels.csv"))
    assert "9 rows in labels.csv, 1 of them with more text than the prompt's" in labelled.out
    assert "input: 1 row of 9" in run(*predict("--input", "train.jsonl")).err
    assert "test: 1 row of 9" in run(*evaluate("--test", "train.jsonl")).err


def predict(*more: str) -> list[str]:
    return ["predict", "--backend", "toy", "--prompt", "mine", *more]


def evaluate(*more: str) -> list[str]:
    return ["evaluate", "--backend", "toy", "--prompt", "mine", *more]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("tune --label-field catgory", "category"),
        ("tune --label-field category --fields subjct,body", "subject"),
        ("tune --label-field category --template '{bdy} {prompt} {label}'", "body"),
        ("tune --label-field category --optimizer nevergrad:PSOO", "PSO"),
        ("tune --label-field category --preset papr-icml22", "paper-icml22"),
        ("tune --label-field category --head wrds", "words"),
        ("tune --label-field category --projection unifrm", "uniform"),
        ("tune --label-field category --prompt-words bilt-in", "built-in"),
        ("compare --label-field catgory --optimizers cma --seeds 1 --out o", "category"),
        ("compare --label-field category --optimizers cma,randm --seeds 1 --out o", "random"),
        ("reproduce --model m --data . --out o --tasks sst3", "sst2"),
        ("reproduce --model m --data . --out o --methods bbtt", "bbt"),
    ],
)
def test_a_mistyped_name_is_answered_by_the_one_that_was_meant(
    folder: Path, run: Run, wrong: str, meant: str
) -> None:
    rows = [{"subject": "a film", "body": f"so {word}", "category": word} for word in WORDS]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = [] if "reproduce" in wrong else ["--backend", "toy", "--train", "rows.jsonl"]
    printed = run(*shlex.split(wrong), *more)
    assert printed.code == 2
    assert f"did you mean '{meant}'" in printed.err
