"""Runs on a cluster, by joblib's own registration: a real one, of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import joblib
import pytest

from lmaas_tune.cli import main
from tests.lab.films import DiesOnce, compare_films
from tests.lab.test_compare import essence

distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a cluster with two workers."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def test_a_cluster_finds_what_one_process_finds_though_a_worker_is_killed(
    tmp_path: Path, scheduler: str
) -> None:
    book = tmp_path / "book"
    with distributed.Client(scheduler), joblib.parallel_config(backend="dask"):
        there = compare_films(tmp_path / "there", backend=partial(DiesOnce, book))
    assert book.with_suffix(".dead").exists()
    assert essence(there) == essence(compare_films(tmp_path / "here"))
    workers = {line.split()[0] for line in book.read_text().splitlines()}
    assert str(os.getpid()) not in workers and len(workers) >= 2


def test_the_command_line_sends_runs_to_a_cluster(
    tmp_path: Path, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "train.csv"
    rows.write_text("text,label\ngreat,good\ndull,bad\nlovely,good\npoor,bad\n")
    small = ["--intrinsic-dim", "4", "--prompt-init", "so", "--budget", "calls=21"]
    where = ["--backend", "toy", "--train", str(rows), "--out", str(tmp_path / "out")]
    code = main(
        ["compare", "--optimizers", "random", "--seeds", "1,2", "--dask", scheduler, *where, *small]
    )
    assert code == 0
    assert len(list((tmp_path / "out").rglob("run.jsonl"))) == 2


def test_a_scheduler_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        [
            "compare",
            "--dask",
            "nowhere",
            "--optimizers",
            "random",
            "--seeds",
            "1",
            "--out",
            "x",
            "--train",
            "x.csv",
        ]
    )
    assert code == 2
    assert "--dask nowhere: no scheduler answers there" in capsys.readouterr().err
