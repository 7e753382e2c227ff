"""Rewards in processes of their own: what they do there costs a completion, and nothing else."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fiberjax.tasks.rewards import (
    SHIPPED,
    Case,
    Isolated,
    Limits,
    Target,
    close_all,
    combine,
    extracted,
    rewards_of,
    tells,
    workers,
)
from fiberjax.tasks.rewards.base import Failed

OWN = str(Path(__file__).with_name("own_rewards.py"))


def apart(name, **limits):
    limits = {"seconds": 0.3, "megabytes": 256.0, "workers": 2} | limits
    return Isolated(f"own_rewards:{name}", Target("own_rewards", OWN, name), Limits(**limits))


@pytest.fixture(scope="module")
def bad():
    """One pool for all that a reward may do wrong."""
    yield apart("bad", workers=1)
    close_all()


def value(verify, completion, answer="x"):
    return verify.many([Case("p", answer, completion)])[0]


def running(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("completion", "why"),
    [
        ("hang", r"took more than 0\.3 s of processor time"),
        ("bomb", r"needed more than 256 MB"),
        ("die", r"its process was ended by SIGABRT"),
        ("leave", r"SystemExit: 3"),
        ("raise", r"own_rewards\.py, line \d+: KeyError: 'no\\nrow'"),
    ],
)
def test_what_a_reward_does_wrong_is_one_failure(bad, completion, why):
    cases = [Case("p", "x", text) for text in ("good", completion, "good")]
    first, failed, last = bad.many(cases)
    assert first == last == 1.0
    assert isinstance(failed, Failed) and not failed.stops
    assert re.search(why, failed.why)
    assert bad.trouble == failed.why and bad("p", "x", completion) == 0.0


def test_one_that_sleeps_is_killed(monkeypatch):
    monkeypatch.setattr(workers, "SLACK", 1)
    verify = apart("bad", seconds=0.05)
    verify.load()
    began = time.monotonic()
    assert "waiting" in value(verify, "sleep").why
    assert time.monotonic() - began < 30
    close_all()


def test_failures_are_counted_and_pay_nothing(bad):
    found = rewards_of(bad, "d", [Case("p", "x", "raise"), Case("p", "x", "good")])
    assert found.reward.tolist() == [0.0, 1.0] and found.failed.tolist() == [True, False]
    half = combine("0.5*bad + bad", {"bad": bad})
    found = rewards_of(half, "d", [Case("p", "x", "raise"), Case("p", "x", "good")])
    assert found.reward.tolist() == [0.0, 1.5] and found.failed.tolist() == [True, False]


@pytest.mark.parametrize(("completion", "shown"), [("nan", "nan"), ("text", "'1.0'")])
def test_what_is_no_finite_number_names_domain_and_prompt(bad, completion, shown):
    with pytest.raises(ValueError, match=rf"domain 'd' returned .*{shown}.* the prompt 'p'"):
        rewards_of(bad, "d", [Case("p", "x", completion)])


def test_a_failure_may_stop_the_run():
    verify = apart("bad", stops=True, workers=1)
    with pytest.raises(ValueError, match=r"domain 'd' failed for the prompt 'p' .* KeyError"):
        rewards_of(verify, "d", [Case("p", "x", "raise")])
    with pytest.raises(ValueError, match=r"own_rewards:bad failed: .*KeyError"):
        verify("p", "x", "raise")


def test_rows_and_lists_reach_a_function_that_takes_them():
    cases = [Case("p", "x", text, {"accepted": 7}) for text in ("7", "8")]
    assert apart("of_row").many(cases) == [1.0, 0.25]
    assert apart("batched").many(cases) == [2.0, 2.0]
    close_all()


def test_work_is_shared_and_stays_in_order():
    verify = apart("right")
    assert extracted(verify, "so 7") == "7" and extracted(verify, "") is None
    cases = [Case("p", str(index), str(index if index % 3 else "no")) for index in range(60)]
    assert verify.many(cases) == [float(bool(index % 3)) for index in range(60)]
    pool = verify._pool
    assert len(pool._workers) == min(2, workers.cores())
    close_all()
    assert pool._workers == [] and verify("p", "a", "a") == 1.0  # Others start.
    pids = [worker.process.pid for worker in pool._workers]
    del verify, pool
    gc.collect()
    assert pids and not any(map(running, pids))


def test_hostile_expressions_earn_nothing_and_cost_themselves_alone():
    pytest.importorskip("math_verify")
    answer, right = r"2\sqrt{3}", r"\boxed{\frac{6}{\sqrt{3}}}"
    hostile = [
        *(r"9^{9^{9^{9^9}}}", r"\left|\infty\right|", r"\frac{0}{0}", "x" * 501),
        *(r"2\sqrt{3}}, \boxed{1", "\ud800", "\x00"),
    ]
    cases = [Case("p", answer, rf"\boxed{{{text}}}") for text in hostile]
    math = SHIPPED["math"].limited(Limits(seconds=1.0, workers=1))
    found = rewards_of(math, "d", [*cases, Case("p", answer, right)])
    assert found.reward.tolist() == [0.0] * len(cases) + [1.0]
    assert found.failed[0] and not found.failed[-1]
    close_all()


def test_what_says_nothing_of_answers_is_known(bad):
    assert extracted(bad, "so 7") is None and not tells(bad)
    assert tells(SHIPPED["math"]) and extracted(SHIPPED["math"], r"so \boxed{\pi}") == r"\pi"
    assert not tells(SHIPPED["exact"]) and tells(combine("bad + number", {**SHIPPED, "bad": bad}))


@pytest.mark.parametrize(
    ("name", "message"),
    [("two", r"own_rewards:two cannot be loaded: .*takes \(prompt, answer\)"),
     ("none", r"own_rewards:none cannot be loaded: .*has no function 'none'")],
)  # fmt: skip
def test_a_function_that_cannot_be_called_is_told(name, message):
    with pytest.raises(ValueError, match=message):
        apart(name).load()


SLEEPER = """
import sys
sys.path.insert(0, {folder!r})
from test_workers import apart
verify = apart("bad", workers=1, seconds=20.0)
print(int(verify("p", "x", "pid")), flush=True)
verify("p", "x", {completion!r})
"""


@pytest.mark.parametrize(
    ("how", "completion"), [(signal.SIGTERM, "sleep"), (signal.SIGKILL, "hang")]
)
def test_no_worker_outlives_a_run_that_is_killed(how, completion, tmp_path):
    folder = str(Path(__file__).parent)
    program = SLEEPER.format(folder=folder, completion=completion)
    paths = os.pathsep.join([*sys.path, folder])
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    pid = int(process.stdout.readline())
    assert running(pid)
    process.send_signal(how)
    process.wait()
    process.stdout.close()
    until = time.monotonic() + 15  # Its own limits are longer.
    while running(pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not running(pid)


def test_a_worker_needs_no_jax():
    program = "import sys, fiberjax.tasks.rewards.worker; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
