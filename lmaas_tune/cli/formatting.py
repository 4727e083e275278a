"""Formatting of results: as JSON values and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmaas_tune.calls.meter import Spent
from lmaas_tune.plan import Plan
from lmaas_tune.result import TuneResult
from lmaas_tune.scores import Comparison


def comparison_json(comparison: Comparison | None) -> dict[str, Any]:
    """The three scores and what they say; null without test rows."""
    if comparison is None:
        return {"baseline": None, "start": None, "tuned": None, "verdict": None}
    scores = {name: score.to_json() for name, score in vars(comparison).items()}
    return {**scores, "verdict": comparison.verdict}


def result_json(result: TuneResult) -> dict[str, Any]:
    """The result of a run, without test rows."""
    best, provenance, prompt = result.best, result.prompt.provenance, result.prompt.prompt
    return {
        "spent": result.spent.to_json(),
        "stop_reason": result.stop_reason,
        "finished": result.finished,
        "seed": result.seed,
        "identity": result.client.identity,
        "versions": provenance["versions"],
        "settings": provenance["settings"],
        "best": {
            "generation": best.generation,
            "train": None if best.train is None else best.train.summary,
            "validation": None if best.validation is None else best.validation.summary,
        },
        "bounds": result.bounds,
        "prompt_digest": result.prompt.digest,
        "prompt_text": prompt.words,
        "fields": list(result.prompt.task.template.fields),
        "out": None if result.out is None else str(result.out.resolve()),
    }


def score_table(scores: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """A table with one line for each score, as JSON has it."""
    width = max(len(name) for name, _ in scores)
    lines = [f"  {'':{width}}  accuracy  95% interval   loss  calibration error"]
    for name, score in scores:
        low, high = score["interval"]
        lines.append(
            f"  {name:{width}}  {score['accuracy']:>8.1%}  {f'{low:.1%} to {high:.1%}':>12}  "
            f"{number(score['loss']):>5}  {number(score['calibration_error']):>17}"
        )
    return "\n".join(lines)


def comparison_table(content: Mapping[str, Any]) -> str:
    """A table of the scores before and after head and search, and what they say."""
    rows = [("starting words, as the model is", content["baseline"])]
    if content["settings"]["head"] != "none":
        rows.append(("starting words with their head", content["start"]))
    rows.append(("tuned prompt", content["tuned"]))
    tuned = content["tuned"]
    return (
        f"On {count('test row', tuned['rows'])}, of which {tuned['majority']:.1%} have the most "
        f"frequent label:\n{score_table(rows)}\n{content['verdict']}"
    )


def format_best(best: Mapping[str, Any]) -> str:
    """Generation and losses of the best prompt, as a sentence."""
    where = "the start" if best["generation"] == 0 else f"generation {best['generation']}"
    losses = ", ".join(
        f"{name} loss {number(best[key]['loss'])}"
        for key, name in (("train", "training"), ("validation", "validation"))
        if best[key] is not None
    )
    return f"The best prompt is that of {where}" + (f": {losses}." if losses else ".")


def format_spent(spent: Spent) -> str:
    """Spending, as text."""
    counted = (
        ("call", spent.calls),
        ("validation call", spent.validation_calls),
        ("row", spent.sequences),
        ("token", spent.tokens),
        ("retry", spent.retries),
    )
    parts = [count(word, n) for word, n in counted if n]
    money = [f"{spent.money:,.4g} of money"] if spent.money else []
    return ", ".join([*parts, *money, duration(spent.seconds)])


def format_plan(plan: Plan) -> str:
    """What a search would cost, as text."""
    lines = [  # without the warning, which is a note of the search too
        f"A call scores one prompt on {count('row', plan.rows)}: {_costs(plan.call)}.",
        f"The search would score {count('start', plan.starts)} and "
        f"{count('generation', plan.generations)} of {plan.population}, at most: "
        f"{count('call', plan.total.calls)}, {_costs(plan.total)}.",
        f"What would end it: {plan.reason}.",
    ]
    return "\n".join(lines)


def _costs(spent: Spent) -> str:
    return format_spent(replace(spent, calls=0, validation_calls=0)) + (
        f", {count('request', spent.requests)}" if spent.requests else ""
    )


def count(word: str, n: int) -> str:
    """A number with its noun, in the plural if needed."""
    many = word[:-1] + "ies" if word.endswith("y") else word + "s"
    return f"{n:,} {word if n == 1 else many}"


def number(value: float | None) -> str:
    """Three decimals, or a dash for none."""
    return "-" if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Seconds, as text."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def sentence(text: str) -> str:
    """The text as a sentence, with capital and full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."
