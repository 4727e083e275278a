"""Columns that look like ids, dates or addresses are not sent, and the user is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmaas_tune.columns import unread_columns
from lmaas_tune.dataset import default_template
from lmaas_tune.errors import InputError
from lmaas_tune.task import Example

TEXTS = ("where is my parcel?", "the app stops", "I want my money back", "wrong size", "no sound")


def rows(**columns: Any) -> list[Example]:
    return [
        Example({"body": text, **{name: str(values[n]) for name, values in columns.items()}}, "x")
        for n, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("ticket", ["T-1001", "T-17", "T-5", "T-6", "T-88"], "ids"),
        ("row", [1, 2, 3, 4, 5], "ids"),
        ("customer_id", ["a", "b", "a", "c", "d"], "ids"),
        ("customerId", ["7", "3", "7", "4", "1"], "ids"),
        ("hash", [f"{n}b1946ac92492d2347c6235b4d2611184" for n in range(5)], "ids"),
        ("uuid", [f"123e4567-e89b-12d3-a456-42661417400{n}" for n in range(5)], "ids"),
        ("order", [f"#{n}31" for n in range(5)], "ids"),
        (
            "created",
            ["2026-01-02", "2026-01-03 10:11", "2026-1-4T05:06:07Z", "", "2026/1/2"],
            "dates",
        ),
        ("datum", ["01.02.2026", "3.4.26", "5/6/2026", "5-6-2026", "7.8.26"], "dates"),
        ("at", ["10:11", "9:05 pm", "23:59:59", "00:00", "1:02"], "dates"),
        ("from", [f"user{n}@mail.example.org" for n in range(5)], "addresses"),
        ("link", ["https://a.example/b?c", "www.example.org", "http://x.y", "", ""], "addresses"),
        (
            "phone",
            ["+49 (30) 1234-567", "030 1234567", "5551234567", "555-123-4567", ""],
            "addresses",
        ),
        ("machine", ["10.0.0.1", "192.168.1.20", "10.0.0.2", "10.0.0.3", "10.0.0.4"], "addresses"),
        ("amount", [300, 20, 50, 7, 20], None),
        ("price", ["3.50", "20.00", "5.25", "7.00", "1.10"], None),
        ("stars", [5, 1, 3, 3, 1], None),
        ("subject", ["order 66", "help", "mail a@b.example please", "2026 plans", "#1 fan"], None),
        ("product", ["A12", "A12", "B7", "B7", "C1"], None),
        ("empty", [""] * 5, None),
    ],
)
def test_what_a_column_looks_like(name: str, values: list[Any], kind: str | None) -> None:
    found = unread_columns(rows(**{name: values}))
    assert found == ({} if kind is None else {name: kind})


def test_columns_that_all_look_alike_are_all_read() -> None:
    numbers = [Example({"a": str(n), "b": str(n)}, "x") for n in range(5)]
    assert unread_columns(numbers) == {}


def test_what_the_model_reads_and_what_it_does_not_is_told() -> None:
    notes: list[str] = []
    several = rows(created=["2026-01-02"] * 5, mail=["a@b.example"] * 5, subject=list("abcde"))
    template = default_template(several, on_note=notes.append)
    assert template.text == "Body: {body}\nSubject: {subject}\n {prompt} {label}"
    assert notes == [
        f"no template is given, so the model reads body, subject: {template.text!r}; it does not "
        "read created (looks like dates), mail (looks like addresses)"
    ]


def test_named_fields_are_read_in_their_order_without_a_word() -> None:
    notes: list[str] = []
    several = rows(created=["2026-01-02"] * 5, subject=list("abcde"))
    template = default_template(several, fields=["created", "body"], on_note=notes.append)
    assert template.fields == ("created", "body")
    assert notes == []
    with pytest.raises(InputError, match="no field 'subjet'; did you mean 'subject'"):
        default_template(several, fields=["subjet"], on_note=notes.append)


def test_the_command_line_sends_the_named_fields_alone(tmp_path: Path, capsys: Any) -> None:
    from lmaas_tune.cli import main

    path = tmp_path / "tickets.csv"
    lines = [
        f"T-{n};a@b.example;{mood} {thing};{mood} indeed;{mood}"
        for n, thing in enumerate(("day", "meal", "film", "book"))
        for mood in ("good", "bad")
    ]
    path.write_text("\n".join(["ticket;mail;subject;body;queue", *lines]), encoding="utf-16")
    common = ["tune", "--backend", "toy", "--train", str(path), "--label-field", "queue"]
    common += ["--budget", "calls=20", "--prompt", "soft", "--json"]
    assert main([*common, "--out", str(tmp_path / "all")]) == 0
    told = capsys.readouterr().err
    assert "read as utf-16, with semicolons" in told
    assert "reads subject, body: " in told
    assert "does not read ticket (looks like ids), mail (looks like addresses)" in told
    assert main([*common, "--fields", "body, ticket", "--out", str(tmp_path / "some")]) == 0
    assert "does not read" not in capsys.readouterr().err
    saved = (tmp_path / "some" / "prompt.json").read_text()
    assert '"Body: {body}\\nTicket: {ticket}\\n {prompt} {label}"' in saved
    assert main([*common, "--fields", "body", "--template", "{body} {prompt} {label}"]) == 2
    assert "--fields and --template exclude each other" in capsys.readouterr().err
