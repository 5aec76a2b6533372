"""What hostile answers and hostile circumstances cannot do to the verifier."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import psutil
import pytest

import bandpo.reward.pool
from bandpo.reward import MathVerifier
from bandpo.reward.pool import Limits, Request, WorkerPool

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LIMIT_S = 0.7
MEMORY_MIB = 512

TOWER = "9^{9^{9^{9^9}}}"
# Each is a list of (text, how often); CANARY is a file that must not come into being.
HOSTILE = {
    case["name"]: "".join(text * times for text, times in case["parts"])
    for case in map(json.loads, (Path(__file__).parent / "hostile_answers.jsonl").open())
}
SLOW = Request(r"\sin x=\frac12+e^{-999}", r"\sin x=\frac12", lowest_form="off")
GOLDS = ["42", r"\sqrt{2}", "x^2+1"]


def boxed(answer):
    return rf"The answer is \boxed{{{answer}}}."


def ordinary(n, seed=0):
    rng = random.Random(seed)
    kinds = [r"\frac{%d}{7}", "%d", "x+%d", "(%d, 2)", r"%d\sqrt{2}", r"%d\%%", "%d^\\circ"]
    pairs = []
    for _ in range(n):
        kind, answer = rng.choice(kinds), rng.randrange(1, 7)
        gold = rng.choice([answer, rng.randrange(1, 7)])
        pairs.append((boxed(kind % answer), kind % gold))
    return pairs


def statuses(scores):
    return [score.status for score in scores]


def workers(pool):
    """The living processes that read model output: children of the pool's templates."""
    return [child for template in templates(pool) for child in template.children()]


def templates(pool):
    return [psutil.Process(w._template.pid) for w in pool._workers if w._template is not None]


@pytest.fixture
def pool():
    with contextlib.closing(WorkerPool(1, Limits(timeout=10))) as pool:
        assert pool.submit(Request("x+1", "1+x")).result(timeout=60).verdict == "equal"
        yield pool


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(timeout=LIMIT_S, memory_mib=MEMORY_MIB, lowest_form=False) as verifier:
        verifier.score(ordinary(30))  # both workers are up
        yield verifier


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "written"


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_hostile_answers(verifier, canary, every, monkeypatch):
    before = statuses(verifier.score(ordinary(1000)))
    largest = 0
    # A second try on a busy machine has a test of its own; here every late item is final.
    monkeypatch.setattr(bandpo.reward.pool, "_STARVED", 0.0)
    for turn, (name, answer) in enumerate(HOSTILE.items()):
        for gold in GOLDS[turn % every :: every]:
            text = boxed(answer.replace("CANARY", str(canary)))
            for _ in range(3):  # others may use the machine: the best of three counts
                start = time.monotonic()
                (score,) = verifier.score([(text, gold)])
                seconds = time.monotonic() - start
                if seconds < LIMIT_S + 0.5:
                    break
            assert seconds < LIMIT_S + 0.5, (name, gold)
            assert score.value == 0.0 and not score.correct, (name, gold, score)
            largest = max([largest, *(w.memory_info().rss >> 20 for w in workers(verifier._pool))])
    assert largest < MEMORY_MIB
    assert not canary.exists()
    deadline = time.monotonic() + 2
    while len(workers(verifier._pool)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers(verifier._pool)) == 2
    monkeypatch.undo()
    verifier._cache.clear()
    assert statuses(verifier.score(ordinary(1000))) == before


def test_hostile_answers_beside_ordinary_ones(verifier):
    pairs = ordinary(60, seed=1)
    expected = statuses(verifier.score(pairs))
    mixed = [
        (boxed(TOWER + f"+{i}"), r"\sqrt{2}") if i % 20 == 0 else p for i, p in enumerate(pairs)
    ]
    verifier._cache.clear()
    scores = statuses(verifier.score(mixed))
    assert [s for i, s in enumerate(scores) if i % 20] == [
        s for i, s in enumerate(expected) if i % 20
    ]


def test_no_towers_where_the_reference_is_a_number():
    """They cannot be right there, so they cost nothing."""
    with MathVerifier(timeout=30) as verifier:
        scores = verifier.score([(boxed(TOWER + f"+{i}"), "42") for i in range(20)])
        assert {score.status for score in scores} == {"wrong"}
        assert max(score.seconds for score in scores) < 1


def kill_until(stop, pool, every_s, at_most):
    rng, killed = random.Random(0), 0
    while killed < at_most and not stop.wait(every_s):
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            rng.choice(workers(pool)).kill()
            killed += 1
    return killed


@pytest.mark.parametrize(
    ("items", "every_s"),
    [(1500, 0.03), pytest.param(30_000, 0.1, marks=pytest.mark.slow)],
)
def test_workers_killed_at_random(items, every_s):
    pairs = ordinary(items)
    with MathVerifier(timeout=10, fast_path=False, cache_size=1) as verifier:
        undisturbed = statuses(verifier.score(pairs))
        stop, killed = threading.Event(), []
        thread = threading.Thread(
            # On a busy machine a worker may need longer than every_s for a single item.
            target=lambda: killed.append(kill_until(stop, verifier._pool, every_s, items // 8))
        )
        thread.start()
        disturbed = statuses(verifier.score(pairs))
        stop.set()
        thread.join()
    assert disturbed == undisturbed
    assert killed[0] >= 5


def test_templates_killed():
    pairs = ordinary(300, seed=2)
    with MathVerifier(timeout=10, fast_path=False, cache_size=1) as verifier:
        undisturbed = statuses(verifier.score(pairs))
        timer = threading.Timer(0.1, lambda: [t.kill() for t in templates(verifier._pool)])
        timer.start()
        assert statuses(verifier.score(pairs)) == undisturbed
        timer.join()
        assert statuses(verifier.score(pairs)) == undisturbed


def test_killed_while_idle(pool):
    for n in range(3):
        workers(pool)[0].kill()
        time.sleep(0.1 * n)
        assert pool.submit(Request(f"x+{n}", f"{n}+x")).result(timeout=30).verdict == "equal"


@pytest.fixture
def killed_at(monkeypatch):
    """`killed_at(condition)`: workers kill themselves, as others would from outside, before they
    judge an `answer` for which the condition holds; pauses between tries are short."""

    def kill(condition):
        start = f"""
            import os, signal
            from bandpo.reward import equality, worker
            judge, self_test = equality.judge, equality.self_test
            def judge_unless_killed(answer, **request):
                if {condition}:
                    os.kill(os.getpid(), signal.SIGKILL)
                return judge(answer, **request)
            def test_before():
                self_test()
                equality.judge = judge_unless_killed
            equality.self_test = test_before
            worker.main()
        """
        monkeypatch.setattr(bandpo.reward.pool, "_START", textwrap.dedent(start))
        monkeypatch.setattr(bandpo.reward.pool, "_LONGEST_PAUSE_S", 0.02)

    return kill


def test_a_right_answer_is_right_however_often_its_worker_is_killed(killed_at, tmp_path):
    for n in range(40):
        (tmp_path / str(n)).touch()
    # A worker may write no file, but remove one: each removal is a death.
    killed_at(
        f"(left := os.listdir({str(tmp_path)!r})) and not os.remove("
        f"os.path.join({str(tmp_path)!r}, left[0]))"
    )
    with contextlib.closing(WorkerPool(1, Limits(timeout=10))) as pool:
        assert pool.submit(Request("x+1", "1+x")).result(timeout=60).verdict == "equal"
    assert not list(tmp_path.iterdir())


def test_an_answer_that_alone_is_killed_is_given_up_in_time(killed_at, monkeypatch, caplog):
    monkeypatch.setattr(bandpo.reward.pool, "_PATIENCE_S", 1.0)
    killed_at("answer == 'poison'")
    with contextlib.closing(WorkerPool(1, Limits(timeout=10))) as pool:
        reply = pool.submit(Request("poison", "x")).result(timeout=60)
        assert (reply.verdict, reply.detail) == ("crashed", "killed at each try for 1 s")
        assert "an answer was not verified" in caplog.text
        assert pool.submit(Request("x+1", "1+x")).result(timeout=60).verdict == "equal"


def test_no_answer_is_to_blame_where_every_worker_is_killed(killed_at, monkeypatch):
    monkeypatch.setattr(bandpo.reward.pool, "_PATIENCE_S", 1.0)
    killed_at("True")
    with contextlib.closing(WorkerPool(1, Limits(timeout=10))) as pool:
        right = pool.submit(Request("x+1", "1+x"))
        with pytest.raises(RuntimeError, match="out of memory"):
            right.result(timeout=60)


def test_a_starved_item_is_tried_again():
    """A worker stopped past its limit has not used its time: the answer is not to blame."""
    with contextlib.closing(WorkerPool(1, Limits(timeout=1.0))) as pool:
        assert pool.submit(Request("x+1", "1+x")).result(timeout=60).verdict == "equal"
        workers(pool)[0].suspend()
        assert pool.submit(Request("x+1", "1+x")).result(timeout=60).verdict == "equal"


def test_a_slow_item_is_not_tried_again():
    with contextlib.closing(WorkerPool(1, Limits(timeout=1.0))) as pool:
        assert pool.submit(Request("x+1", "1+x")).result(timeout=60).verdict == "equal"
        before = workers(pool)
        assert pool.submit(SLOW).result(timeout=60).verdict == "timeout"
        assert workers(pool) != before


def test_workers_are_recycled_without_a_trace():
    with contextlib.closing(WorkerPool(1, Limits(timeout=10, recycle_after=3))) as pool:
        pids = set()
        for n in range(20):
            assert pool.submit(Request(f"x+{n}", f"{n}+x")).result(timeout=60).verdict == "equal"
            pids.update(worker.pid for worker in workers(pool))
        assert len(pids) > 2


def test_close_ends_everything(pool):
    processes = templates(pool) + workers(pool)
    assert len(processes) == 2
    running, waiting = pool.submit(SLOW), pool.submit(Request("x", "y"))
    time.sleep(0.3)
    pool.close()
    assert isinstance(running.exception(timeout=60), CancelledError)
    with pytest.raises(CancelledError):
        waiting.result(timeout=60)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


@pytest.mark.parametrize("busy", [False, True])
def test_workers_die_with_their_parent(tmp_path, busy):
    """Also after SIGKILL, also in the middle of an endless computation."""
    answer, gold = (SLOW.answer, SLOW.gold) if busy else ("x", "y")
    script = tmp_path / "trainer.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import threading, time
            from bandpo.reward.pool import *
            pool = WorkerPool(2, Limits(timeout=600))
            for first in [pool.submit(Request("x+1", f"{{n}}+x")) for n in range(20)]:
                first.result()
            for _ in range(2):
                pool.submit(Request({answer!r}, {gold!r}, lowest_form="off"))
            time.sleep(0.5)
            print("ready", flush=True)
            time.sleep(600)
            """
        )
    )
    trainer = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert trainer.stdout.readline() == "ready\n"
        family, deadline = [], time.monotonic() + 60
        while len(family) < 4:  # a template and its worker, twice; one may still be starting
            assert time.monotonic() < deadline
            family = psutil.Process(trainer.pid).children(recursive=True)
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


@linux
def test_workers_load_neither_torch_nor_the_main_module(tmp_path):
    """The trainer's main module has torch and more; a worker sees none of it, and no GPU."""
    script = tmp_path / "trainer.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys
            import torch
            open(sys.argv[1], "a").write("imported\\n")
            os.environ["CUDA_VISIBLE_DEVICES"] = "0"
            os.environ["SECRET_TOKEN"] = "secret"
            if __name__ == "__main__":
                from bandpo.reward import MathVerifier
                import psutil
                with MathVerifier(timeout=20) as verifier:
                    assert verifier.score([("\\\\boxed{x+1}", "1+x")])[0].correct
                    for process in psutil.Process().children(recursive=True):
                        maps = open(f"/proc/{process.pid}/maps").read()
                        assert not any(n in maps for n in ("libtorch", "vllm", "deepspeed", "cuda"))
                        environment = process.environ()
                        assert environment["CUDA_VISIBLE_DEVICES"] == ""
                        assert "SECRET_TOKEN" not in environment
            """
        )
    )
    marks = tmp_path / "marks"
    subprocess.run([sys.executable, str(script), str(marks)], check=True, timeout=120)
    assert marks.read_text() == "imported\n"


def in_a_confined_process(code):
    """Runs code after the worker's own confinement, in a process of its own."""
    program = (
        "import os; from bandpo.reward import worker; worker._leave_network(); "
        "worker._confine({'memory_mib': 512})\n" + textwrap.dedent(code)
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "import socket; socket.socket()",
        "import subprocess; subprocess.run(['true'])",
        "os.system('true')",
        "os.execv('/bin/true', ['true'])",
        "os.fork()",
    ],
)
def test_no_network_and_no_processes(code):
    result = in_a_confined_process(code)
    assert result.returncode != 0 and "PermissionError" in result.stderr


def test_memory_is_limited():
    assert in_a_confined_process("bytearray(200 << 20)").returncode == 0
    result = in_a_confined_process("bytearray(512 << 20)")
    assert result.returncode != 0 and "MemoryError" in result.stderr


def test_no_files_are_written(tmp_path):
    path = tmp_path / "file"
    result = in_a_confined_process(f"open({str(path)!r}, 'w').write('x' * 100_000)")
    assert result.returncode != 0
    assert not path.exists() or path.stat().st_size == 0


def test_nothing_is_installed_in_the_callers_process():
    """No signal handler, no timer: math-verify's own alarm would wipe the host's."""
    signal.signal(signal.SIGALRM, handler := lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        with MathVerifier() as verifier:
            assert verifier.score([(boxed("x+1"), "1+x")])[0].correct
        assert signal.getsignal(signal.SIGALRM) is handler
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_no_completion_is_evaluated_as_python():
    """Names reach no parser that evaluates: the grammar of latex2sympy is the only one."""
    from bandpo.reward import equality

    sources = [path.read_text() for path in Path(equality.__file__).parent.glob("*.py")]
    forbidden = ("eval(", "exec(", "sympify", "parse_expr", "lambdify", "nsimplify", "S(")
    assert len(sources) > 5
    assert not [word for word in forbidden for source in sources if word in source]
