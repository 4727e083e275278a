"""`BackendConformance`: requirements on every backend, as tests to inherit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import ClassVar

import numpy as np
import pytest

from lmaas_tune.backend import (
    Backend,
    Capabilities,
    Embeds,
    Inspection,
    Inspects,
    KnowsWords,
    Measures,
    ScoreReply,
    ScoreRequest,
)
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import (
    INSERTIONS,
    DeepPrompt,
    FloatArray,
    Insertion,
    Prompt,
    SoftPrompt,
    TextPrompt,
)
from lmaas_tune.task import Batch, Part, Slot
from lmaas_tune.testing.suite import Conformance, check, require

CANDIDATES = ("good", "bad", "fine")

SHORT = (
    "A film that stays with you.",
    "Two hours I will not get back",
    "",
    "   spaces   and\na line break\t",
    "naïve café — 電影很好看 🎬 مرحبا",
)
"""Texts: plain, empty, with runs of spaces, non-ASCII."""


class BackendConformance(Conformance):
    """Subclass it, and give a fixture that builds your backend; `Capabilities` select the checks.

        class TestMine(BackendConformance):
            @pytest.fixture
            def backend(self):
                return MyBackend("small-model")

            @pytest.fixture
            def differing(self):  # each may answer differently from `backend`
                return [MyBackend("other-model"), MyBackend("small-model", revision="2")]

    A check that cannot pass is declared: ``deviations = {"test_...": "the reason"}``.

    Rows have up to 70 words, fewer if `Capabilities.max_tokens` is small; it must be 128 or more.

    Attributes:
        candidates: Three label words; take others if the model cannot tell these apart.
        tolerance: Largest difference between two ways to compute one score.
    """

    candidates: ClassVar[tuple[str, ...]] = CANDIDATES
    tolerance: ClassVar[float] = 1e-4

    @pytest.fixture
    def backend(self) -> Backend:
        """The backend under test."""
        raise NotImplementedError("give the suite a fixture backend")

    @pytest.fixture
    def differing(self) -> Sequence[Backend]:
        """Backends with other settings, one a setting that changes answers."""
        return ()

    def switches(self, subject: Backend) -> dict[str, str | None]:
        """Switches by the capabilities and the optional protocols."""
        can = subject.capabilities
        claims = {
            "soft prompts": (can.soft_prompt_width is not None, "it takes no soft prompts"),
            "deep prompts": (can.deep_layers is not None, "it takes no deep prompts"),
            "text prompts": (can.text_prompts, "it takes no text prompts"),
            "prompts left out": (_leaves_out(can), "it takes every kind of prompt"),
            "label anywhere": (can.label_anywhere, "its label must be last"),
            "label last": (not can.label_anywhere, "its label may be anywhere"),
            "deterministic": (can.deterministic, "it does not claim to be deterministic"),
            "max_tokens": (can.max_tokens is not None, "it does not state its longest row"),
            "Embeds": (isinstance(subject, Embeds), "it gives no word embeddings"),
            "KnowsWords": (_scores_words(subject), "it scores no further words for a head"),
            "Inspects": (isinstance(subject, Inspects), "it has no `inspect`"),
            "Measures": (_measures(subject), "it measures no layers"),
        }
        return {claim: None if on else off for claim, (on, off) in claims.items()}

    def test_tally(self, backend: Backend, capsys: pytest.CaptureFixture[str]) -> None:
        """Print which checks run."""
        self.report(backend, capsys)

    # --- the shape of an answer

    @check()
    def test_it_takes_some_prompt(self, backend: Backend) -> None:
        """The capabilities name at least one kind of prompt."""
        can = backend.capabilities
        require(isinstance(can, Capabilities), f"capabilities are a {type(can).__name__}")
        require(
            can.text_prompts or (can.soft_prompt_width and can.insertions),
            "by its capabilities it takes neither soft nor text prompts",
        )

    @check()
    def test_an_answer_has_a_row_a_text_and_a_column_a_candidate(self, backend: Backend) -> None:
        """(rows, candidates) float64; one reply a request, none for none."""
        for rows in (1, 2, len(SHORT)):
            (reply,) = backend.score([self._request(backend, texts=SHORT[:rows])])
            require(isinstance(reply, ScoreReply), f"a reply is a {type(reply).__name__}")
            shape, dtype = reply.logprobs.shape, reply.logprobs.dtype
            require(
                shape == (rows, len(self.candidates)),
                f"{rows} rows and {len(self.candidates)} candidates give the shape {shape}",
            )
            require(dtype == np.float64, f"log-probabilities are {dtype}, not float64")
        require(list(backend.score([])) == [], "no requests give replies")

    @check()
    def test_scores_are_log_probabilities(self, backend: Backend) -> None:
        """Finite and <= 0, for empty, long and non-ASCII texts too."""
        logprobs = self._score(backend, self._request(backend))
        require(np.isfinite(logprobs).all(), "a log-probability is NaN or infinite")
        require((logprobs <= 0).all(), f"a log-probability is {logprobs.max():.3g}, above 0")

    @check()
    def test_usage_counts_the_rows(self, backend: Backend) -> None:
        """`sequences` is the number of rows; tokens grow with the text; nothing is negative."""
        short, long = (
            backend.score([self._request(backend, texts=texts)])[0].usage
            for texts in (SHORT[:2], self._texts(backend)[-1:] * 2)
        )
        for usage in (short, long):
            require(usage.sequences == 2, f"2 rows are counted as {usage.sequences} sequences")
            counts = (usage.requests, usage.tokens, usage.bytes_up, usage.bytes_down, usage.money)
            require(min(counts) >= 0, f"a count is negative: {usage}")
        require(
            short.tokens < long.tokens or short.tokens == long.tokens == 0,
            f"a long text counts {long.tokens} tokens, a short one {short.tokens}",
        )

    # --- inputs that an answer depends on

    @check()
    def test_a_row_does_not_depend_on_its_neighbours(self, backend: Backend) -> None:
        """Alone, in a batch, in the reversed batch: a text has the same scores."""
        texts = self._texts(backend)
        together = self._score(backend, self._request(backend))
        backwards = self._score(backend, self._request(backend, texts=texts[::-1]))
        alone = [self._score(backend, self._request(backend, texts=(text,))) for text in texts]
        self._same(together, np.concatenate(alone), "a row alone and in a batch")
        self._same(together, backwards[::-1], "a row in a batch and in the reversed batch")

    @check()
    def test_a_request_does_not_depend_on_its_neighbours(self, backend: Backend) -> None:
        """A generation of prompts gives the scores that each prompt gives alone, in order."""
        requests = [self._request(backend, prompt=p) for p in self._prompts(backend, 3)]
        requests.append(self._request(backend, texts=SHORT[:1]))
        replies = backend.score(requests)
        require(
            len(replies) == len(requests), f"{len(requests)} requests give {len(replies)} replies"
        )
        for request, reply in zip(requests, replies, strict=True):
            self._same(
                self._score(backend, request), reply.logprobs, "a request alone and with others"
            )

    @check()
    def test_columns_follow_the_candidates(self, backend: Backend) -> None:
        """Candidates in another order give the same columns in that order."""
        logprobs = self._score(backend, self._request(backend))
        turned = self._score(
            backend, self._request(backend, candidates=self.candidates[1:] + self.candidates[:1])
        )
        self._same(np.roll(logprobs, -1, axis=1), turned, "candidates in another order")

    @check()
    def test_a_candidate_does_not_depend_on_the_others(self, backend: Backend) -> None:
        """Scores are normalised over the model's vocabulary, not over the candidates."""
        logprobs = self._score(backend, self._request(backend))
        fewer = self._score(backend, self._request(backend, candidates=self.candidates[:2]))
        self._same(logprobs[:, :2], fewer, "a candidate with and without a further one")

    @check()
    def test_the_text_matters(self, backend: Backend) -> None:
        """Two texts differ in their scores."""
        logprobs = self._score(backend, self._request(backend, texts=SHORT[:2]))
        require(np.ptp(logprobs, axis=0).max() > 0, "all texts get the same scores")

    @check(needs="deterministic")
    def test_a_repeated_call_gives_the_same_answer(self, backend: Backend) -> None:
        """Bit for bit, as `deterministic` promises."""
        first, second = (self._score(backend, self._request(backend)) for _ in range(2))
        require(np.array_equal(first, second), "the same request gets another answer")

    @check(needs="deterministic")
    def test_an_answer_belongs_to_the_caller(self, backend: Backend) -> None:
        """Writing into a reply does not change the next one."""
        request = self._request(backend)
        (reply,) = backend.score([request])
        before = reply.logprobs.copy()
        if reply.logprobs.flags.writeable:
            reply.logprobs.fill(0.0)
        self._same(before, self._score(backend, request), "before and after writing into a reply")

    @check(needs="deterministic")
    def test_threads_do_not_disturb_each_other(self, backend: Backend) -> None:
        """Four threads with different orders of requests get the scores of one thread."""
        requests = [
            self._request(backend, prompt=prompt, texts=SHORT[: 1 + i % len(SHORT)])
            for i, prompt in enumerate(self._prompts(backend, 8))
        ]
        alone = [self._score(backend, request) for request in requests]
        barrier = Barrier(4)

        def rotated(thread: int) -> list[FloatArray]:
            barrier.wait()
            turn = 2 * thread
            replies = [self._score(backend, r) for r in requests[turn:] + requests[:turn]]
            return replies[len(requests) - turn :] + replies[: len(requests) - turn]

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)  # threads switch often, so that a race condition shows
        try:
            with ThreadPoolExecutor(4) as threads:
                together = list(threads.map(rotated, range(4)))
        finally:
            sys.setswitchinterval(interval)
        for replies in together:
            for one, other in zip(alone, replies, strict=True):
                self._same(one, other, "a request in one thread and beside other threads")

    # --- identity

    @check()
    def test_identity_is_stable(self, backend: Backend) -> None:
        """A non-empty string that scoring does not change."""
        identity = backend.identity
        require(isinstance(identity, str) and identity, f"identity is {identity!r}")
        require(backend.identity == identity, "identity differs between two reads")
        self._score(backend, self._request(backend))
        require(backend.identity == identity, "identity changes when something is scored")

    @check()
    def test_other_settings_have_another_identity(
        self, backend: Backend, differing: Sequence[Backend]
    ) -> None:
        """Backends that may answer differently have different identities and cache keys."""
        require(
            differing,
            "there is no backend to compare with: give the fixture `differing`, or declare a "
            "deviation with the reason why this backend has no settings",
        )
        identities = [backend.identity, *(other.identity for other in differing)]
        require(len(set(identities)) == len(identities), f"identities repeat: {identities}")

    # --- prompts

    @check(needs="soft prompts")
    def test_every_insertion_is_scored(self, backend: Backend) -> None:
        """Each insertion of the capabilities works, and the vectors change the scores."""
        can = backend.capabilities
        require(can.insertions <= set(INSERTIONS), f"unknown insertions in {can.insertions}")
        for insertion in sorted(can.insertions):
            one, other = (
                self._score(backend, self._request(backend, prompt=prompt))
                for prompt in self._soft(backend, 2, insertion=insertion)
            )
            require(
                not np.array_equal(one, other),
                f"soft prompts by {insertion!r} do not change the scores",
            )

    @check(needs="soft prompts")
    def test_a_soft_prompt_of_another_width_is_refused(self, backend: Backend) -> None:
        """With one sentence, before the first paid call."""
        width = backend.capabilities.soft_prompt_width or 0
        for wrong in {1, width - 1, width + 1} - {0, width}:
            self._refused(backend, SoftPrompt(np.zeros((2, wrong))), f"width {wrong}")

    @check(needs="deep prompts")
    def test_every_layer_of_a_deep_prompt_matters(self, backend: Backend) -> None:
        """Vectors in any layer change the scores; zeros above the first layer change nothing."""
        for insertion in sorted(backend.capabilities.insertions):
            (first,) = self._soft(backend, 1, insertion=insertion)
            above = [np.zeros_like(first.vectors)] * ((backend.capabilities.deep_layers or 0) - 1)
            plain, zero = (
                self._score(backend, self._request(backend, prompt=prompt))
                for prompt in (first, DeepPrompt(first, above))
            )
            self._same(plain, zero, "a soft prompt, and a deep one with zeros above it")
            for i in range(len(above)):
                moved = DeepPrompt(first, [*above[:i], first.vectors + 1, *above[i + 1 :]])
                other = self._score(backend, self._request(backend, prompt=moved))
                require(
                    not np.array_equal(zero, other),
                    f"vectors in layer {i + 1} do not change the scores",
                )

    @check(needs="deep prompts")
    def test_a_deep_prompt_of_another_depth_is_refused(self, backend: Backend) -> None:
        """With one sentence, before the first paid call."""
        layers = backend.capabilities.deep_layers or 0
        for wrong in (layers - 1, layers + 1):
            self._refused(backend, self._deep(backend, max(1, wrong)), f"{wrong} layers")

    @check(needs="deep prompts")
    def test_a_deep_prompt_does_not_depend_on_its_neighbours(self, backend: Backend) -> None:
        """Among other prompts, soft and deep, it has the same scores and token counts as alone."""
        layers = backend.capabilities.deep_layers or 0
        prompts = [self._deep(backend, layers, seed=seed) for seed in range(3)]
        requests = [
            self._request(backend, prompt=prompt, texts=SHORT)
            for prompt in (prompts[0], prompts[1].first, prompts[1], prompts[2])
        ]
        replies = backend.score(requests)
        for request, reply in zip(requests, replies, strict=True):
            self._same(
                self._score(backend, request), reply.logprobs, "a deep prompt alone and with others"
            )
        soft, deep = replies[1].usage, replies[2].usage
        require(soft.tokens == deep.tokens, f"a soft prompt takes {soft}, and the deep one {deep}")

    @check(needs="text prompts")
    def test_text_prompts_are_scored(self, backend: Backend) -> None:
        """An empty one too; other words give other scores."""
        one, other, _ = (
            self._score(backend, self._request(backend, prompt=TextPrompt(text)))
            for text in ("Overall, the movie is", "Frankly, nobody would say that it was", "")
        )
        require(not np.array_equal(one, other), "text prompts do not change the scores")

    @check(needs="KnowsWords")
    def test_further_words_change_no_score(self, backend: Backend) -> None:
        """As many as a request may name, or 300; they have scores, and the label words' stay."""
        known = [
            word
            for word in backend.one_token_words()  # type: ignore[attr-defined]
            if word not in self.candidates
        ]
        require(
            len(known) == len(set(known)) and known, "one_token_words repeats words, or is empty"
        )
        most = backend.capabilities.words_per_request
        words = known[: 300 if most is None else min(300, most - len(self.candidates))]
        plain = self._request(backend)
        longer = self._request(backend, candidates=(*self.candidates, *words))
        scores = self._score(backend, longer)
        count = len(self.candidates)
        self._same(self._score(backend, plain), scores[:, :count], "with further words and without")
        require(
            np.isfinite(scores).all() and (scores <= 0).all(),
            "a further word has a score that is no log-probability",
        )
        total = np.exp(scores).sum(axis=1).max()
        require(total < 1.001, f"words of one token each have a total probability of {total:.3g}")

    @check(needs="prompts left out")
    def test_a_prompt_outside_the_capabilities_is_refused(self, backend: Backend) -> None:
        """The kinds of prompt that the capabilities leave out."""
        can = backend.capabilities
        if not can.text_prompts:
            self._refused(backend, TextPrompt("Overall"), "a text prompt")
        if can.soft_prompt_width is None:
            self._refused(backend, SoftPrompt(np.zeros((2, 8))), "a soft prompt")
            return
        if can.deep_layers is None:
            self._refused(backend, self._deep(backend, 2), "a deep prompt")
        for insertion in sorted(set(INSERTIONS) - can.insertions):
            (prompt,) = self._soft(backend, 1, insertion=insertion)
            self._refused(backend, prompt, f"insertion {insertion!r}")

    @check(needs="label anywhere")
    def test_the_label_may_stand_before_the_end(self, backend: Backend) -> None:
        """The text after it is read too."""
        one, other = (
            self._score(
                backend,
                self._request(backend, rows=[(Slot.PROMPT, " It was ", Slot.LABEL, f" {text}")]),
            )
            for text in SHORT[:2]
        )
        require(np.isfinite(one).all() and (one <= 0).all(), "no log-probabilities")
        require(not np.array_equal(one, other), "the text after the label is not read")

    @check(needs="label last")
    def test_a_label_before_the_end_is_refused_where_it_has_to_stand_last(
        self, backend: Backend
    ) -> None:
        """Never scored without the text after it."""
        rows: list[tuple[Part, ...]] = [(Slot.PROMPT, "It was ", Slot.LABEL, " in the end.")]
        self._refuses(backend, self._request(backend, rows=rows), "text after the label")

    @check(needs="max_tokens")
    def test_a_row_that_is_too_long_is_refused(self, backend: Backend) -> None:
        """Never truncated silently; `inspect` refuses it too, before the first paid call."""
        longest = backend.capabilities.max_tokens or 0
        request = self._request(backend, texts=("word " * (longest + 1),))
        subject = f"a row of more than {longest} tokens"
        self._refuses(backend, request, subject)
        if isinstance(backend, Inspects):
            _refuses(lambda: backend.inspect(request), f"inspecting {subject}")

    # --- optional protocols

    @check(needs="Embeds")
    def test_words_have_embeddings(self, backend: Backend) -> None:
        """(tokens, H) float32, the same each time."""
        if not isinstance(backend, Embeds):
            raise AssertionError("it gives no word embeddings")
        ids = backend.tokenize("Overall, the movie is")
        require(
            len(ids) > 0 and all(0 <= i < backend.vocabulary_size for i in ids),
            f"token ids {ids} in a vocabulary of {backend.vocabulary_size}",
        )
        vectors = backend.embed(ids)
        width = backend.capabilities.soft_prompt_width
        require(vectors.shape == (len(ids), width), f"{len(ids)} embeddings of {vectors.shape}")
        require(vectors.dtype == np.float32, f"embeddings are {vectors.dtype}, not float32")
        require(np.array_equal(vectors, backend.embed(ids)), "embeddings change")
        require(
            np.isfinite(backend.embedding_std) and backend.embedding_std > 0,
            f"embedding_std is {backend.embedding_std}",
        )

    @check(needs="Inspects")
    def test_inspecting_states_the_usage(self, backend: Backend) -> None:
        """Notes in sentences; rows and tokens as `score` counts them, or 0 if unknown."""
        if not isinstance(backend, Inspects):
            raise AssertionError("it has no `inspect`")
        request = self._request(backend)
        found = backend.inspect(request)
        require(isinstance(found, Inspection), f"inspect gives a {type(found).__name__}")
        require(
            isinstance(found.notes, tuple) and all(isinstance(note, str) for note in found.notes),
            f"notes are {found.notes!r}, not a tuple of sentences",
        )
        taken = backend.score([request])[0].usage
        for expected, actual in (
            (found.usage.sequences, taken.sequences),
            (found.usage.tokens, taken.tokens),
        ):
            require(
                expected in (0, actual), f"inspect gives {found.usage}, and scoring takes {taken}"
            )

    @check(needs="Measures")
    def test_measuring_gives_a_std_for_each_layer_above_the_first(self, backend: Backend) -> None:
        """Positive, finite, the same each time; with the usage."""
        if not isinstance(backend, Measures):
            raise AssertionError("it measures no layers")
        request = self._request(backend, texts=SHORT)
        spread = backend.measure(request)
        layers = backend.capabilities.deep_layers or 0
        require(
            np.shape(spread.stds) == (layers - 1,) and all(0 < std < np.inf for std in spread.stds),
            f"the stds are {spread.stds!r}: {layers - 1} positive and finite numbers are expected",
        )
        require(np.array_equal(spread.stds, backend.measure(request).stds), "the stds change")
        require(
            0 <= spread.usage.sequences <= len(SHORT),
            f"measuring {len(SHORT)} rows takes {spread.usage}",
        )

    # --- building requests

    def _request(
        self,
        backend: Backend,
        *,
        prompt: Prompt | None = None,
        texts: Sequence[str] | None = None,
        candidates: tuple[str, ...] | None = None,
        rows: Sequence[tuple[Part, ...]] | None = None,
    ) -> ScoreRequest:
        if prompt is None:
            (prompt,) = self._prompts(backend, 1)
        if rows is None:
            rows = [_row(text, prompt) for text in texts or self._texts(backend)]
        return ScoreRequest(prompt, Batch(tuple(rows)), candidates or self.candidates)

    def _texts(self, backend: Backend) -> tuple[str, ...]:
        longest = backend.capabilities.max_tokens
        repeats = 12 if longest is None else min(12, longest // 40)
        return (*SHORT, "It keeps on going, " * repeats)

    def _prompts(self, backend: Backend, count: int) -> list[Prompt]:
        """Prompts of a kind that the backend takes."""
        if backend.capabilities.soft_prompt_width is None:
            return [TextPrompt("Overall," + " very" * i) for i in range(count)]
        insertion = min(backend.capabilities.insertions)
        return list(self._soft(backend, count, insertion=insertion))

    def _soft(self, backend: Backend, count: int, *, insertion: Insertion) -> list[SoftPrompt]:
        std = backend.embedding_std if isinstance(backend, Embeds) else 1.0
        rng = np.random.default_rng(0)
        shape = (count, 3, backend.capabilities.soft_prompt_width or 0)
        anchor = (1, 2, 3) if insertion == "add" else ()
        return [
            SoftPrompt(vectors, insertion=insertion, anchor=anchor)
            for vectors in std * rng.standard_normal(shape)
        ]

    def _deep(self, backend: Backend, layers: int, *, seed: int = 0) -> DeepPrompt:
        (first,) = self._soft(backend, 1, insertion=min(backend.capabilities.insertions))
        rng = np.random.default_rng(seed)
        above = rng.standard_normal((layers - 1, *first.vectors.shape))
        return DeepPrompt(first, list(above))

    # --- checking answers

    def _score(self, backend: Backend, request: ScoreRequest) -> FloatArray:
        (reply,) = backend.score([request])
        return reply.logprobs

    def _same(self, one: FloatArray, other: FloatArray, pair: str) -> None:
        require(one.shape == other.shape, f"{pair}: shapes {one.shape} and {other.shape}")
        largest = float(np.abs(one - other).max(initial=0.0))
        require(
            largest <= self.tolerance,  # false for NaN
            f"{pair}: scores differ by {largest:.2g}, more than {self.tolerance:.2g}",
        )

    def _refused(self, backend: Backend, prompt: Prompt, subject: str) -> None:
        self._refuses(backend, self._request(backend, prompt=prompt), subject)

    def _refuses(self, backend: Backend, request: ScoreRequest, subject: str) -> None:
        _refuses(lambda: backend.score([request]), subject)


def _row(text: str, prompt: Prompt) -> tuple[Part, ...]:
    """The text, the prompt, the label; the prompt first if its insertion is "prepend"."""
    if not text:
        return (Slot.PROMPT, " It was ", Slot.LABEL)
    if prompt.prepended:
        return (Slot.PROMPT, f" {text} It was ", Slot.LABEL)
    return (f"{text} ", Slot.PROMPT, " It was ", Slot.LABEL)


def _refuses(action: Callable[[], object], subject: str) -> None:
    try:
        action()
    except InputError as error:
        require(str(error).strip(), f"{subject} is refused without a sentence")
    except Exception as error:
        raise AssertionError(
            f"{subject} raises {type(error).__name__} ({error}) and not an InputError"
        ) from error
    else:
        raise AssertionError(f"{subject} is accepted, though the capabilities leave it out")


def _measures(subject: Backend) -> bool:
    return isinstance(subject, Measures) and subject.capabilities.deep_layers is not None


def _scores_words(backend: Backend) -> bool:
    """Whether it scores further words beside the label words."""
    return isinstance(backend, KnowsWords) and backend.capabilities.words_per_request != 0


def _leaves_out(can: Capabilities) -> bool:
    """Whether there is a kind of prompt that the capabilities do not claim."""
    every = can.text_prompts and can.soft_prompt_width is not None and can.deep_layers is not None
    return not (every and can.insertions >= set(INSERTIONS))
