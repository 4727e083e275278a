"""A key that was typed in the wrong place is not printed back."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmaas_tune.cli import main
from lmaas_tune.key_hiding import looks_secret, shown

KEY = "sk-proj-4fQ7z_Lm2"
OTHER = "tW3n0kC0fXn1q8Yb5Zf0/rVYl7v2vQf0m1+Jj4p3d6N9s=="
TUNE = ["tune", "--train", "train.jsonl"]
OPENAI = ["--backend", "openai", "--model", "m", "--url", "http://127.0.0.1:9"]


@pytest.mark.parametrize("more", [["--json"], ["--traceback"]])
@pytest.mark.parametrize("key", [KEY, OTHER, "abc.def/ghi" * 40, f"a\0{KEY}"])
@pytest.mark.parametrize(
    "flags",
    [
        [*TUNE, "--backend", "toy", "--api-key-file", "{key}"],
        [*TUNE, *OPENAI, "--api-key-file", "{key}"],
        ["doctor", "--backend", "toy", "--api-key-file={key}"],
        ["doctor", *OPENAI, "--api-key-file", "{key}"],
        ["doctor", "--api-key-file", "{key}"],
        ["serve", "--backend", "toy", "--api-key-file", "{key}"],
        [*TUNE, *OPENAI, "--api-key", "{key}"],
        [*TUNE, *OPENAI, "--key={key}"],
        [*TUNE, *OPENAI, "--header", "Authorization: Bearer {key}"],
        [*TUNE, *OPENAI, "--backend-options", "api_key={key}"],
        [*TUNE, *OPENAI, "--backend-options", '{{"headers": {{"Authorization": "Bearer {key}"'],
        ["doctor", *OPENAI, "--backend-options", "seed=x,api_key={key}"],
        ["doctor", "--backend", "openai", "--model", "m", "--url", "http://me:{key}@host"],
        ["doctor", "--backend", "openai", "--model", "m", "--url", "ftp://me:{key}@host"],
        ["doctor", "--backend", "toy", "--url", "http://me:{key}@host"],
        [*TUNE, "--urls", "http://me:{key}@host"],
    ],
)
def test_a_key_that_was_typed_is_not_printed_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    key: str,
    more: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n')
    in_url = any("@host" in flag for flag in flags)
    key = key.replace("/", "%2F") if in_url else key
    assert main([flag.format(key=key) for flag in flags] + more) == 2
    printed = "".join(capsys.readouterr())
    assert key.strip("\0a") not in printed
    assert key[-12:] not in printed


def test_a_file_is_shown_where_it_looks_like_one(tmp_path: Path) -> None:
    (tmp_path / "tW3n0kC0fXn1q8Yb5Zf0").write_text("k")
    for name in (
        "keys",
        "key.txt",
        "my-openai-key.env",
        "tW3n0kC0fXn1q8Yb5Zf0",
        "no-such-file-there",
    ):
        assert shown(tmp_path / name) == str(tmp_path / name)
    for secret in (
        KEY,
        OTHER,
        "AIzaSyD4fQ7zLm2Xv9",
        "a" * 5000,
        "eyJhbGciOi.J9eyJzdWIi.OiIxMjM0NTY",
    ):
        assert looks_secret(secret)
        assert secret not in shown(secret)


def test_words_that_are_like_names_of_secrets_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["tune", "--train", "t.csv", "--backend-options", "max_tokens=3000"]) == 2
    assert main(["tune", "--train", "t.csv", "--max-tokens", "t.csv"]) == 2
    assert capsys.readouterr().err.count("t.csv") == 2
