"""Rows on the wire, as a server reads them."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the extra 'vllm' is not installed")
pytest.importorskip("transformers", reason="the extra 'vllm' is not installed")

from lmaas_tune_adapters.vllm.rows import RowWriter  # noqa: E402
from lmaas_tune_adapters.vllm.table import EmbeddingTable  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def table(width: int) -> EmbeddingTable:
    numbers = torch.Generator().manual_seed(0)
    return EmbeddingTable(torch.randn(20, width, generator=numbers))


def writer(width: int = 5, dtype: Any = torch.float32, kept: int = 1 << 20) -> RowWriter:
    return RowWriter(table(width), dtype, max_kept_bytes=kept)


def read(row: bytes) -> Any:
    content = io.BytesIO(base64.b64decode(row, validate=True))
    return torch.load(content, weights_only=True)


def vectors(length: int, width: int, seed: int) -> Any:
    return torch.randn(length, width, generator=torch.Generator().manual_seed(seed))


@st.composite
def rows(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    """Token ids, where the prompt begins, and its length."""
    ids = tuple(draw(st.lists(st.integers(0, 19), min_size=1, max_size=300)))
    place = draw(st.integers(0, len(ids) - 1))
    return ids, place, draw(st.integers(1, len(ids) - place))


@given(
    row=rows(),
    width=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    adds=st.booleans(),
    kept=st.sampled_from([0, 2000, 1 << 20]),
)
def test_a_server_reads_the_words_with_the_prompt_in_its_place(
    row: tuple[tuple[int, ...], int, int], width: int, dtype: Any, adds: bool, kept: int
) -> None:
    ids, place, length = row
    writes = writer(width, dtype, kept)
    for seed in (1, 2):  # the second is written with what was kept
        prompt = vectors(length, width, seed)
        expected = table(width).rows(ids)
        there = expected[place : place + length]
        there.copy_(there + prompt if adds else prompt)
        found = read(writes.soft(ids, place, prompt, adds=adds))
        torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_server_reads_a_row_of_words(dtype: Any) -> None:
    expected = table(5).rows((3, 1, 2)).to(dtype)
    found = read(writer(dtype=dtype).words((3, 1, 2)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_the_prompt_leaves_as_it_is_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = []
    stock = EmbeddingTable.rows

    def listening(self: EmbeddingTable, ids: Any) -> Any:
        looked_up.append(ids)
        return stock(self, ids)

    monkeypatch.setattr(EmbeddingTable, "rows", listening)
    writes = writer()
    for seed in range(3):
        for ids in ((1, 2, 3), (4, 5, 6)):
            writes.soft(ids, 1, vectors(1, 5, seed), adds=False)
    assert looked_up == [(1, 2, 3), (4, 5, 6)]


@pytest.mark.parametrize("kept", [0, 100, 5_000])
def test_no_more_is_kept_than_allowed(kept: int) -> None:
    writes = writer(kept=kept)
    for first in range(20):
        writes.soft((first, 1, 2, 3), 1, vectors(1, 5, 0), adds=False)
        held = sum(frame.nbytes for frame in writes._frames.values())
        assert held == writes._bytes <= kept
    assert bool(writes._frames) == (kept > 100)


def test_threads_do_not_mix_rows_up() -> None:
    writes = writer(kept=5_000)  # of the twenty rows, about half
    jobs = [((first, 1, 2, 3), seed) for seed in range(20) for first in range(20)]

    def write(job: tuple[tuple[int, ...], int]) -> bytes:
        ids, seed = job
        return writes.soft(ids, 1, vectors(2, 5, seed), adds=False)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(write, jobs))
    alone = writer(kept=0)
    for (ids, seed), row in zip(jobs, found, strict=True):
        assert row == alone.soft(ids, 1, vectors(2, 5, seed), adds=False)
    assert writes._bytes == sum(frame.nbytes for frame in writes._frames.values())
