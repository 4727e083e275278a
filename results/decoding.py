"""How a point of R^d should become a text prompt: random keys against bins, on made-up losses.

    python results/decoding.py

One instruction of 16 and three words of 40, the defaults' numbers. The loss of a prompt adds up
normal effects: of its instruction (standard deviation 0.5), of each word (0.3), of each word
under this instruction and after this neighbour (0.15 each). Printed is the lowest loss found at
200 calls, over 24 such problems; nevergrad's own parametrizations stand below for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from lmaas_tune.optimizers import make_optimizer
from lmaas_tune.prompts import FloatArray, TextPrompt
from lmaas_tune.prompts.text import TextSpace

INSTRUCTIONS, WORDS, SLOTS, CALLS, PROBLEMS = 16, 40, 3, 200, 24
SIZES = (INSTRUCTIONS, *[WORDS + 1] * SLOTS)
OPTIMIZERS = ("cma", "diagonal-cma", "de", "pso", "tbpsa", "one-plus-one", "random")
DISCRETE = "DiscreteOnePlusOne"


class Problem:
    """A loss for every choice of an instruction and words, where word 0 is none."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.instruction = 0.5 * rng.standard_normal(INSTRUCTIONS)
        self.word = 0.3 * rng.standard_normal(WORDS + 1)
        self.under = 0.15 * rng.standard_normal((INSTRUCTIONS, WORDS + 1))
        self.after = 0.15 * rng.standard_normal((WORDS + 1, WORDS + 1))

    def __call__(self, choices: Sequence[int]) -> float:
        first, *words = choices
        words = [word for word in words if word]
        loss = self.instruction[first] + sum(self.word[w] + self.under[first, w] for w in words)
        return float(loss + sum(self.after[a, b] for a, b in pairwise(words)))


def keys(points: FloatArray) -> list[list[int]]:
    """The choices by random keys: those of the package's own space."""
    space = TextSpace(
        instructions=tuple(f"0 {i}" for i in range(INSTRUCTIONS)),
        words=tuple(str(w) for w in range(1, WORDS + 1)),
        slots=SLOTS,
    )
    prompts = [prompt for prompt in space.prompts(points) if isinstance(prompt, TextPrompt)]
    return [[int(n) for n in prompt.text.split()[1:]] for prompt in prompts]


def bins(points: FloatArray) -> list[list[int]]:
    """The choices by one coordinate each: the middle half is entry 0, the tails are the others."""
    return [[_bin(u, size) for u, size in zip(point, SIZES, strict=True)] for point in points]


def _bin(coordinate: float, size: int) -> int:
    share = NormalDist().cdf(float(coordinate))
    if abs(share - 0.5) <= 0.25:
        return 0
    tail = (share if share < 0.5 else share - 0.5) / 0.5
    return 1 + min(int(tail * (size - 1)), size - 2)


def decoded(
    decode: Callable[[FloatArray], list[list[int]]], dim: int, optimizer: str, seed: int
) -> float:
    problem, best, calls = Problem(seed), np.inf, 0
    search = make_optimizer(optimizer, dim, seed=seed, calls=CALLS)
    while calls + search.population <= CALLS:
        points = search.ask()
        losses = np.array([problem(choices) for choices in decode(points)])
        search.tell(points, losses)
        best, calls = min(best, losses.min()), calls + len(points)
    return float(best)


def nevergrads(kind: str, seed: int) -> float:
    import nevergrad as ng

    choice = {
        "Choice": lambda size: ng.p.Choice(range(size), deterministic=True),
        "TransitionChoice": lambda size: ng.p.TransitionChoice(range(size)),
    }[kind]
    space = ng.p.Tuple(*map(choice, SIZES))
    space.random_state = np.random.RandomState(seed)
    search, problem, best = ng.optimizers.registry[DISCRETE](space, CALLS), Problem(seed), np.inf
    for _ in range(CALLS):
        candidate = search.ask()
        loss = problem(candidate.value)
        search.tell(candidate, loss)
        best = min(best, loss)
    return float(best)


def cell(losses: Sequence[float]) -> str:
    return f"{np.mean(losses):.2f} ± {np.std(losses, ddof=1) / len(losses) ** 0.5:.2f}"


def main() -> None:
    print("| optimizer | random keys | bins |\n|---|---|---|")
    for optimizer in (*OPTIMIZERS, f"nevergrad:{DISCRETE}"):
        by_keys = [decoded(keys, sum(SIZES), optimizer, seed) for seed in range(PROBLEMS)]
        by_bins = [decoded(bins, len(SIZES), optimizer, seed) for seed in range(PROBLEMS)]
        print(f"| {optimizer} | {cell(by_keys)} | {cell(by_bins)} |", flush=True)
    own = {
        kind: cell([nevergrads(kind, seed) for seed in range(PROBLEMS)])
        for kind in ("Choice", "TransitionChoice")
    }
    print(f"| nevergrad's own, {DISCRETE} | {own['Choice']} | {own['TransitionChoice']} |")


if __name__ == "__main__":
    main()
