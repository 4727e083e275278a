"""The seven tasks as the paper's code puts them, and as we do."""

from __future__ import annotations

import pytest

from lmaas_tune.errors import InputError
from lmaas_tune.lab.paper.table import PUBLISHED
from lmaas_tune.lab.paper.tasks import PAPER_TASKS, paper_task
from lmaas_tune.task import Example, Slot

WORDINGS = [
    pytest.param(task, key, id=f"{task.name}-{key}")
    for task in PAPER_TASKS.values()
    for key in task.wordings
]


def row(task_name: str, key: str, *, manual: bool) -> str:
    """What a row of made-up fields looks like."""
    task = paper_task(task_name)
    wording = task.wordings[key]
    used = wording.manual_task if manual else wording.task
    names = dict(zip(task.fields, ("S1", "S2"), strict=False))
    shown = {Slot.PROMPT: "P", Slot.LABEL: "M"}
    parts = used.template.render(Example(names))
    return "".join(part if isinstance(part, str) else shown[part] for part in parts)


@pytest.mark.parametrize(
    ("task", "key", "tuned", "manual"),
    [
        ("sst2", "masked", "P . S1 . It was M .", "PS1 . It was M ."),
        ("yelpp", "masked", "P . S1 . It was M .", "PS1 . It was M ."),
        ("agnews", "masked", "P . M News: S1", "PM News: S1"),
        ("dbpedia", "masked", "P [ Category: M ] S1", "P[ Category: M ] S1"),
        ("mrpc", "masked", "P . S1 ? M , S2", "PS1 ? M , S2"),
        ("snli", "masked", "P . S1 ? M , S2", "PS1 ? M , S2"),
        ("rte", "seq2seq", "P . S1 ? M , S2", "PS1 ? M , S2"),
        ("sst2", "causal", "P . S1 . The sentiment is M", "PS1 . The sentiment is M"),
        ("yelpp", "causal", "P . S1 . It is M", "PS1 . It is M"),
        ("agnews", "causal", "P . S1 The news above is about M", "PS1 The news above is about M"),
        ("dbpedia", "causal", "P S1 The text above is about M", "PS1 The text above is about M"),
        ("agnews", "seq2seq", "P M News: S1", "PM News: S1"),
        ("sst2", "text-first", "Review: S1\n P M", "Review: S1\n P M"),
    ],
)
def test_a_row_reads_as_in_the_papers_code(task: str, key: str, tuned: str, manual: str) -> None:
    assert row(task, key, manual=False) == tuned
    assert row(task, key, manual=True) == manual


@pytest.mark.parametrize(
    ("task", "key", "words"),
    [
        ("sst2", "masked", "bad great"),
        ("sst2", "seq2seq", "negative positive"),
        ("agnews", "masked", "World Sports Business Tech"),
        ("agnews", "causal", "world sports business tech"),
        ("mrpc", "masked", "No Yes"),
        ("rte", "masked", "Yes No"),
        ("snli", "seq2seq", "Yes Maybe No"),
    ],
)
def test_label_words_are_in_the_order_of_the_labels(task: str, key: str, words: str) -> None:
    verbalizer = paper_task(task).wordings[key].task.verbalizer
    assert " ".join(verbalizer.candidates) == words
    assert verbalizer.labels == tuple(map(str, range(len(words.split()))))


@pytest.mark.parametrize(("task", "key"), WORDINGS)
def test_every_wording_reads_all_fields_and_only_text_first_has_words(task, key) -> None:  # type: ignore[no-untyped-def]
    wording = task.wordings[key]
    for used in (wording.task, wording.manual_task):
        assert set(used.template.fields) == set(task.fields)
    assert bool(wording.words) == (key == "text-first")


def test_a_layout_that_the_paper_lacks_is_refused_with_the_one_that_there_is() -> None:
    with pytest.raises(InputError, match="no template for causal models; take the layout 'text-f"):
        paper_task("mrpc").wording("paper", "causal")
    assert paper_task("mrpc").wording("text-first", "causal").words


def test_losses_budgets_and_metrics_are_the_papers() -> None:
    assert {name: task.objective for name, task in PAPER_TASKS.items()} == {
        **dict.fromkeys(("sst2", "yelpp", "agnews", "dbpedia"), "cross_entropy"),
        **dict.fromkeys(("mrpc", "snli", "rte"), "hinge"),
    }
    assert [name for name, task in PAPER_TASKS.items() if task.calls == 20000] == ["dbpedia"]
    assert [name for name, task in PAPER_TASKS.items() if task.metric == "f1"] == ["mrpc"]
    columns = ["sst2", "yelpp", "agnews", "dbpedia", "mrpc", "snli", "rte"]
    assert list(PAPER_TASKS) == columns


@pytest.mark.parametrize(
    ("method", "average"),
    [
        ("prompt-tuning", 63.46),
        ("p-tuning-v2", 70.47),
        ("model-tuning", 78.88),
        ("manual", 62.56),
        ("icl", 59.36),
        ("feature-mlp", 66.63),
        ("feature-bilstm", 68.29),
        ("bbt", 73.01),
        ("bbtv2", 79.01),
    ],
)
def test_published_rows_have_the_published_averages(method: str, average: float) -> None:
    cells = PUBLISHED[method]
    assert set(cells) == set(PAPER_TASKS)
    # 79.014 and the like: the paper rounds, and averages before it does
    assert 100 * sum(cell.mean for cell in cells.values()) / 7 == pytest.approx(average, abs=0.011)
