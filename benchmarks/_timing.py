"""Times of several functions in one run: interleaved, in a new random order each round, as medians.

Machines are shared and noisy. What is compared is timed in turn within the same seconds; ratios of medians are to be
quoted, absolute times are not. The spread is half the distance between the quartiles, relative to the median.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """Median seconds of one call, its relative spread, the least seconds, and over how many rounds."""

    seconds: float
    spread: float
    least: float
    rounds: int


def interleaved(
    calls: Mapping[str, Callable[[], Any]], seconds: float, title: str, min_rounds: int = 5, max_rounds: int = 200
) -> dict[str, Timing]:
    """Times every call for about `seconds` in all; each call has to wait for its own result."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0)
    started, rounds = time.perf_counter(), 0
    while rounds < max_rounds and (rounds < min_rounds or time.perf_counter() - started < seconds):
        shuffle.shuffle(order)
        for name in order:
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
        rounds += 1
        _progress(f"{title}: round {rounds}, {time.perf_counter() - started:.0f} of {seconds:.0f} s")
    _progress("")
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, (high - low) / 2 / median, min(values), len(values))


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
