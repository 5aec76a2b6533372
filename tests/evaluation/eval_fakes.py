"""An engine and a reward without a model: each sample follows from the prompt's seed alone."""

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bandpo.data.benchmarks import Benchmark, content_sha256
from bandpo.data.prompts import NONE
from bandpo.evaluation.evaluate import Evaluator, Task
from bandpo.evaluation.store import Store
from bandpo.ranks.collectives import Alone
from bandpo.reward.score import Score
from bandpo.rollout.engine import Sampling
from bandpo.types import Completion, Group, Problem, Prompt


class FakeEngine:
    name = "fake"
    weight_version = 0

    def __init__(self, delay=0.0, order_seed=None):
        self.delay, self.order_seed, self.seen = delay, order_seed, []

    def generate(self, prompts, sampling):
        prompts = list(prompts)
        random.Random(self.order_seed).shuffle(prompts)
        for prompt in prompts:
            self.seen.append(prompt)
            time.sleep(self.delay)
            rng = random.Random(prompt.seed)
            yield Group(
                prompt, tuple(self.sample(rng, prompt, sampling) for _ in range(sampling.n))
            )

    def sample(self, rng, prompt, sampling):
        answer = rng.choice([prompt.problem.answer, "-1", "-2"])
        length = rng.randint(1, sampling.max_tokens)
        cut = length == sampling.max_tokens
        text = "never mind </script> \ud800" if cut else f"so {answer}"
        tokens = tuple(range(length))
        return Completion(text, tokens, (-0.5,) * length, "length" if cut else "stop")


class FakeReward:
    """Judges `so 12` in a thread, a little later than asked."""

    def __init__(self, delay=0.0):
        self.delay, self.pool = delay, ThreadPoolExecutor(2)

    def submit(self, group):
        return self.pool.submit(self.judge, group)

    def judge(self, group):
        time.sleep(self.delay)
        return [self.score(completion, group.problem) for completion in group.completions]

    def score(self, completion, problem):
        if completion.truncated:
            return Score(0.0, "truncated", None, 0.0)
        answer = completion.text.removeprefix("so ")
        right = answer == problem.answer
        return Score(float(right), "correct" if right else "wrong", answer, 0.0)

    def close(self):
        self.pool.shutdown()


def fake_task(count=12):
    problems = tuple(Problem(f"p{i}", f"What is {i}+{i}?", str(2 * i)) for i in range(count))
    benchmark = Benchmark("toy", problems, "made up", content_sha256(problems))
    prompts = tuple(Prompt(p, f"<u>{p.problem}", (1, 2, 3)) for p in problems)
    return Task(benchmark, prompts, NONE, "0123")


SAMPLING = Sampling(n=4, max_tokens=6)


def run(
    folder,
    *,
    engine=None,
    reward=None,
    task=None,
    sampling=SAMPLING,
    seed=0,
    model=None,
    scoring=None,
    ranks=None,
    resume=True,
    on_loss=None,
    **progress,
):
    evaluator = Evaluator(
        engine or FakeEngine(),
        reward or FakeReward(),
        sampling,
        seed,
        model or {"path": "toy"},
        scoring or {"rule": "equal"},
        ranks or Alone(),
    )
    store = Store(Path(folder), resume, on_loss)
    (summary,) = evaluator.run([task or fake_task()], store, **progress)
    return summary


if __name__ == "__main__":  # the process that a test kills: python eval_fakes.py FOLDER DELAY
    folder, delay = sys.argv[1], float(sys.argv[2])
    run(folder, engine=FakeEngine(delay, order_seed=time.time_ns()))
