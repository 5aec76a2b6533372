"""The verifier's numbers: agreement, hostile answers, killed workers, speed.

    python benchmarks/verifier.py [--limit 1.0] [--workers 2]

Prints a line per claim with its bar and writes benchmarks/results/verifier.json. Wall-clock numbers
mean something on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from bandpo.reward import MathVerifier, verifier_version

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "reward"
RESULTS = ROOT / "benchmarks" / "results" / "verifier.json"
MEMORY_MIB = 512

Pairs = list[tuple[str, str]]


def boxed(answer: str) -> str:
    """A completion that ends in an answer."""
    return rf"Some reasoning of the usual length. The final answer is $\boxed{{{answer}}}$."


def typical(problems: int = 256, samples: int = 32, seed: int = 0) -> Pairs:
    """Groups of samples: most references are integers, a few distinct wrong answers a problem."""
    rng = random.Random(seed)
    kinds = ["%d"] * 6 + [r"\frac{%d}{%d}", r"%d\sqrt{%d}", r"(%d,%d)", "x^2+%dx-%d", r"%d\pi"]
    pairs: Pairs = []
    for _ in range(problems):
        kind = rng.choice(kinds)
        wanted = kind.count("%d")

        def answer(kind: str = kind, wanted: int = wanted) -> str:
            return kind % tuple(rng.choice([2, 3, 5, 7, 11, 13, 17, 19]) for _ in range(wanted))

        gold = answer()
        answers = [gold, *(answer() for _ in range(6))]
        spelled = [a.replace(r"\frac", rng.choice([r"\frac", r"\dfrac"])) for a in answers]
        pairs += [(boxed(rng.choice(spelled)), gold) for _ in range(samples)]
    return pairs


def agreement(limit: float) -> dict[str, Any]:
    """How often the verdict is the one a person wrote down beforehand."""
    cases = [json.loads(line) for line in (CASES / "labelled_cases.jsonl").open()]
    with MathVerifier(timeout=max(limit, 5.0)) as verifier:
        scores = verifier.score(
            [(case["completion"], case["gold"]) for case in cases],
            [case.get("problem", "") for case in cases],
        )
    right = sum(s.status == case["status"] for s, case in zip(scores, cases, strict=True))
    return {"cases": len(cases), "agreement": right / len(cases)}


def hostile(limit: float, workers: int) -> dict[str, Any]:
    """The worst of time, score and memory over hostile answers, and what the pool is after."""
    after = typical(32, 32, seed=1)[:1000]
    with MathVerifier(
        timeout=limit, workers=workers, memory_mib=MEMORY_MIB, lowest_form=False
    ) as verifier:
        before = [score.status for score in verifier.score(after)]
        slowest, largest, earned = ("", 0.0), 0, 0
        with watched_memory() as peak:
            for line in (CASES / "hostile_answers.jsonl").open():
                case = json.loads(line)
                text = boxed("".join(text * times for text, times in case["parts"]))
                for gold in ("42", r"\sqrt{2}", "x^2+1"):
                    seconds, correct = timed(verifier, text, gold, limit + 0.5)
                    slowest = max(slowest, (case["name"], seconds), key=_second)
                    earned += correct
            largest = peak()
        start = time.perf_counter()
        while len(living_workers()) < workers and time.perf_counter() - start < 10:
            time.sleep(0.01)
        recovered = time.perf_counter() - start
        verifier._cache.clear()
        same = [score.status for score in verifier.score(after)] == before
    return {
        "limit_s": limit,
        "slowest_s": round(slowest[1], 3),
        "slowest": slowest[0],
        "scored_correct": earned,
        "largest_worker_mib": largest,
        "full_strength_after_s": round(recovered, 3),
        "next_1000_unchanged": same,
    }


def timed(verifier: MathVerifier, text: str, gold: str, bar: float) -> tuple[float, bool]:
    """Seconds for one item, the best of three where others disturb, and whether it earned."""
    for _ in range(3):
        start = time.perf_counter()
        (score,) = verifier.score([(text, gold)])
        seconds = time.perf_counter() - start
        if seconds < bar:
            break
    return seconds, score.correct


def killed(workers: int, items: int = 10_000, every_s: float = 0.1) -> dict[str, Any]:
    """Whether SIGKILL at random changes a score."""
    pairs = typical(items // 32 + 1, 32, seed=2)[:items]
    with MathVerifier(timeout=10, workers=workers, fast_path=False, cache_size=1) as verifier:
        undisturbed = [score.status for score in verifier.score(pairs)]
        with random_kills(every_s) as kills:
            disturbed = [score.status for score in verifier.score(pairs)]
    changed = sum(a != b for a, b in zip(undisturbed, disturbed, strict=True))
    return {"items": items, "kills": kills(), "changed_scores": changed}


def speed(workers: int) -> dict[str, Any]:
    """Seconds for 8,192 typical completions, from a verifier that has not started yet."""
    pairs = typical()
    seconds = {}
    for name, fast_path in (("", True), ("_without_fast_path", False)):
        with MathVerifier(timeout=3.0, workers=workers, fast_path=fast_path) as verifier:
            start = time.perf_counter()
            scores = verifier.score(pairs)
            seconds[f"seconds{name}"] = round(time.perf_counter() - start, 2)
    correct = sum(score.correct for score in scores) / len(scores)
    distinct = len({(s.extracted, gold) for s, (_, gold) in zip(scores, pairs, strict=True)})
    return {"completions": len(pairs), "distinct": distinct, "correct": correct, **seconds}


def living_workers() -> list[psutil.Process]:
    """The processes that read model output: grandchildren of this one."""
    children = psutil.Process().children()
    return [grandchild for child in children for grandchild in child.children()]


@contextmanager
def watched_memory() -> Iterator[Any]:
    """The largest resident size of any worker in MiB, sampled from a thread."""
    largest, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            for worker in living_workers():
                with suppress(psutil.Error):
                    largest[0] = max(largest[0], worker.memory_info().rss >> 20)

    thread = threading.Thread(target=watch)
    thread.start()
    yield lambda: largest[0]
    stop.set()
    thread.join()


@contextmanager
def random_kills(every_s: float) -> Iterator[Any]:
    """SIGKILL to a random worker every so often; yields the count so far."""
    kills, stop, rng = [0], threading.Event(), random.Random(0)

    def kill() -> None:
        while not stop.wait(every_s):
            with suppress(psutil.NoSuchProcess, IndexError):
                rng.choice(living_workers()).kill()
                kills[0] += 1

    thread = threading.Thread(target=kill)
    thread.start()
    yield lambda: kills[0]
    stop.set()
    thread.join()


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def main() -> None:
    """Runs everything, prints it and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--limit", type=float, default=1.0, help="seconds a hostile answer may take"
    )
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    limit, workers = arguments.limit, arguments.workers
    results: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "date": datetime.date.today().isoformat(),
        },
        "verifier": verifier_version(),
        "agreement": agreement(limit),
        "hostile": hostile(limit, workers),
        "killed": killed(workers),
        "speed": speed(workers),
    }
    a, h, k, s = (results[name] for name in ("agreement", "hostile", "killed", "speed"))
    for claim, value, bar in [
        ("agreement with labelled cases", f"{a['agreement']:.1%} of {a['cases']}", "≥ 98%"),
        ("slowest hostile answer", f"{h['slowest_s']} s ({h['slowest']})", f"< {limit + 0.5} s"),
        ("hostile answers scored correct", h["scored_correct"], "0"),
        ("largest worker", f"{h['largest_worker_mib']} MiB", f"< {MEMORY_MIB} MiB"),
        ("pool at full strength after", f"{h['full_strength_after_s']} s", "< 2 s"),
        ("next 1,000 scores unchanged", h["next_1000_unchanged"], "True"),
        (f"scores changed by {k['kills']} kills", f"{k['changed_scores']} of {k['items']}", "0"),
        ("8,192 completions", f"{s['seconds']} s", "< 20 s"),
        ("  without the fast path", f"{s['seconds_without_fast_path']} s", "< 20 s"),
    ]:
        print(f"{claim:34s} {value!s:>28s}   bar {bar}")
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # of verifier_cases.py
    RESULTS.write_text(json.dumps({**kept, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
