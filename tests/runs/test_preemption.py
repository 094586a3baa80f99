"""Signals: honoured between two steps if there is time, else at once; never swallowed."""

from __future__ import annotations

import _thread
import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress

import pytest

import modalkit
from modalkit.checkpoint.checkpointer import Checkpointer
from modalkit.checkpoint.store import read
from modalkit.deployment import POLICY_VARIABLE, ContainerPolicy
from modalkit.runs.attempts import read_attempts
from modalkit.runs.preemption import RESERVE_S, PreemptionWatch
from tests.support.training import Outcome, Training, at


@pytest.fixture
def grace(monkeypatch):
    """Set the grace period that the container's policy names."""

    def set_grace(seconds: float) -> None:
        policy = ContainerPolicy(grace_s=seconds).to_json()
        monkeypatch.setenv(POLICY_VARIABLE, json.dumps(policy))

    return set_grace


def send(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def send_later(delay_s: float, number: int = signal.SIGINT) -> threading.Timer:
    timer = threading.Timer(delay_s, send, (number,))
    timer.start()
    return timer


def last_attempt(volume):
    return read_attempts(volume.committed / "runs" / "r")[-1]


NEVER = modalkit.CheckpointPolicy(every_steps=10_000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_is_finished_saved_and_committed_before_the_run_leaves(volume, number):
    stopped = []

    def note(run) -> None:
        stopped.append(run.should_stop)

    with pytest.raises(KeyboardInterrupt, match=f"{number.name} at step 5"):
        Training(volume).fit(before=at(4, lambda: send(number)), after=note, checkpoints=NEVER)
    assert stopped == [False] * 4 + [True]
    assert read(volume.committed / "runs" / "r").step == 5
    attempt = last_attempt(volume)
    assert (attempt.cause, attempt.step, attempt.ended_at is None) == ("preempted", 5, False)


def test_a_signal_before_the_loop_is_honoured_at_its_start(volume):
    training = Training(volume)

    def body() -> None:
        with training.open(checkpoints=NEVER) as run:
            send()
            for _ in run.steps(3):
                pytest.fail("a step was begun")

    with pytest.raises(KeyboardInterrupt):
        body()
    assert read(volume.committed / "runs" / "r").step == 0


def test_a_signal_while_a_save_is_written_does_not_save_again(volume, monkeypatch):
    policy = modalkit.CheckpointPolicy(every_steps=2)
    real = volume.commit

    def commit() -> None:
        if training.seen:
            send()
        real()

    monkeypatch.setattr(volume, "commit", commit)
    training = Training(volume)
    with pytest.raises(KeyboardInterrupt):
        training.fit(checkpoints=policy)
    assert read(volume.committed / "runs" / "r").step == 2
    events = (volume.committed / "runs" / "r" / "events").glob("*.jsonl")
    assert sum(path.read_text().count('"kind":"checkpoint"') for path in events) == 2


# ---- when no boundary comes ---------------------------------------------------------------------


def test_a_step_that_takes_too_long_is_interrupted_and_is_not_saved(volume, grace):
    grace(RESERVE_S + 0.6)
    started = []

    def long_step() -> None:
        started.append(time.monotonic())
        send()
        time.sleep(20)

    with pytest.raises(KeyboardInterrupt, match="did not end in time"):
        Training(volume).fit(
            after=at(4, long_step), checkpoints=modalkit.CheckpointPolicy(every_steps=3)
        )
    waited = time.monotonic() - started[0]
    # Later than at once, and early enough to commit; saves take some of the 0.6 s.
    assert 0.1 < waited < RESERVE_S
    assert read(volume.committed / "runs" / "r").step == 3
    assert (last_attempt(volume).cause, last_attempt(volume).step) == ("preempted", 4)


def test_time_for_a_save_is_taken_from_what_the_step_may_take():
    watch = PreemptionWatch(grace_s=30, saving_s=lambda: 7.5)
    assert watch._seconds_left() == 30 - 7.5 - RESERVE_S
    assert PreemptionWatch(grace_s=30, saving_s=lambda: 60.0)._seconds_left() == 0


def test_the_slowest_of_the_recent_saves_and_commits_counts(volume):
    training = Training(volume)
    with training.open(checkpoints=modalkit.CheckpointPolicy(every_steps=1)) as run:
        slow = [0.0, 0.3, 0.0, 0.0]
        real = volume.commit

        def commit() -> None:
            time.sleep(slow[run.step] if run.step < len(slow) else 0)
            real()

        volume.commit = commit
        seen = [run._saving_s() for _ in run.steps(4)]
    assert seen[0] < 0.3
    assert min(seen[1:]) >= 0.3, "one slow commit is remembered"


def test_a_second_signal_raises_at_once(volume):
    def twice() -> None:
        send()
        send()
        pytest.fail("the second signal did not raise")

    with pytest.raises(KeyboardInterrupt):
        Training(volume).fit(before=at(4, twice))
    assert read(volume.committed / "runs" / "r").step == 3


def test_a_boundary_ends_the_countdown(volume, grace):
    """The save on the way out must not be interrupted by the thread that watches the time."""
    grace(RESERVE_S + 0.2)
    training = Training(volume)
    real = volume.commit

    def slow_commit() -> None:
        time.sleep(0.5)
        real()

    def slow_from_now() -> None:
        volume.commit = slow_commit
        send()

    with pytest.raises(KeyboardInterrupt, match="SIGINT at step 1"):
        training.fit(after=at(0, slow_from_now), checkpoints=NEVER)
    assert read(volume.committed / "runs" / "r").step == 1


def test_a_periodic_save_that_was_not_estimated_may_end(volume, grace, monkeypatch):
    """The signal leaves 0.2 s for the step; the save takes longer than that, and fits."""
    grace(RESERVE_S + 9.0)
    monkeypatch.setattr(Checkpointer, "slowest_s", 8.8)
    real = volume.commit

    def slow_commit() -> None:
        volume.commit = real
        send()
        time.sleep(0.8)
        real()

    def slow_from_now() -> None:
        volume.commit = slow_commit

    with pytest.raises(KeyboardInterrupt, match="SIGINT at step 3"):
        Training(volume).fit(before=at(2, slow_from_now))
    assert read(volume.committed / "runs" / "r").step == 3


def test_a_save_that_hangs_is_interrupted_before_the_reserve(volume, grace, monkeypatch):
    grace(RESERVE_S + 0.5)
    real = volume.commit
    started = []

    def hanging_commit() -> None:
        volume.commit = real
        started.append(time.monotonic())
        send()
        time.sleep(20)

    def hang_from_now() -> None:
        volume.commit = hanging_commit

    with pytest.raises(KeyboardInterrupt, match="did not end in time"):
        Training(volume).fit(before=at(2, hang_from_now))
    assert 0.3 < time.monotonic() - started[0] < RESERVE_S


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_signal_during_the_last_commit_is_not_swallowed(volume, is_refused):
    real = volume.commit
    training = Training(volume)

    def commit() -> None:
        if read_attempts(volume.mount / "runs" / "r")[-1].cause == "finished":
            send()
            if is_refused:
                raise ConnectionError("no route to the server")
        real()

    volume.commit = commit
    with pytest.raises(KeyboardInterrupt, match="was preempted"):
        training.fit(4)
    volume = volume.next_container()
    assert Training(volume).fit(4)["status"] == "finished"


# ---- what the body does with it -----------------------------------------------------------------


def test_a_body_that_swallows_the_interrupt_between_steps_does_not_end_the_input(volume):
    def body() -> None:
        with Training(volume).open(checkpoints=NEVER) as run, suppress(KeyboardInterrupt):
            for _ in run.steps(5):
                send()

    with pytest.raises(KeyboardInterrupt):
        body()
    assert last_attempt(volume).cause == "preempted"
    assert read(volume.committed / "runs" / "r").step == 1


def test_a_body_that_swallows_the_interrupt_inside_a_step_is_not_saved(volume, uninterrupted):
    training = Training(volume)

    def half_done() -> None:
        try:
            send()
            send()
        except KeyboardInterrupt:
            training.model[0].weight.data.zero_()

    with pytest.raises(KeyboardInterrupt):
        training.fit(after=at(7, half_done))
    assert read(volume.committed / "runs" / "r").step == 6
    volume = volume.next_container()
    Training(volume).fit()
    Outcome(volume).assert_equals(uninterrupted)


@pytest.mark.parametrize("ending", ["break", "return", "exit", "error"])
def test_however_a_preempted_body_ends_it_is_a_keyboard_interrupt(volume, ending):
    def body() -> str:
        with Training(volume).open() as run:
            for _ in run.steps(5):
                send()
                if ending == "break":
                    break
                if ending == "return":
                    return "done"
                if ending == "exit":
                    raise SystemExit(0)
                raise ConnectionError("a worker was interrupted too")
        return "swallowed"

    with pytest.raises(KeyboardInterrupt) as caught:
        body()
    cause = {"exit": SystemExit, "error": ConnectionError}.get(ending)
    assert cause is None or isinstance(caught.value.__cause__, cause)
    assert last_attempt(volume).cause == "preempted"


def test_a_step_that_was_left_is_not_saved_by_the_next_loop(volume):
    training = Training(volume)

    def body() -> None:
        with training.open(checkpoints=NEVER) as run:
            for step in run.steps(5):
                training.model[0].weight.data.zero_()
                if step == 2:
                    send()
                    break
            list(run.steps(5))

    with pytest.raises(KeyboardInterrupt):
        body()
    assert read(volume.committed / "runs" / "r").step == 0


def test_a_finished_run_that_was_preempted_leaves_too_and_has_nothing_left_to_do(volume):
    with pytest.raises(KeyboardInterrupt):
        Training(volume).fit(4, before=at(3, send))
    volume = volume.next_container()
    training = Training(volume)
    summary = training.fit(4)
    assert not training.seen
    assert (summary["status"], summary["step"]) == ("finished", 4)


def test_an_interrupt_that_is_no_signal_is_a_preemption_too(volume):
    """`modal.exception.simulate_preemption` raises from SIGALRM."""
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt("alarm")))
    with pytest.raises(KeyboardInterrupt, match="alarm"):
        Training(volume).fit(before=at(4, lambda: send(signal.SIGALRM)))
    assert (last_attempt(volume).cause, last_attempt(volume).step) == ("preempted", 4)
    assert read(volume.committed / "runs" / "r").step == 3


def test_a_commit_that_fails_on_the_way_out_does_not_hide_the_interrupt(volume, monkeypatch):
    def refuse() -> None:
        raise ConnectionError("no route to the server")

    def interrupted() -> None:
        monkeypatch.setattr(volume, "commit", refuse)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Training(volume).fit(before=at(4, interrupted))


# ---- nothing global stays -----------------------------------------------------------------------


@pytest.mark.parametrize("ending", [None, ValueError, KeyboardInterrupt])
def test_handlers_are_put_back_however_the_run_ends(volume, ending):
    def mine(*_: object) -> None: ...

    before = {n: signal.signal(n, mine) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            with Training(volume).open() as run:
                assert signal.getsignal(signal.SIGINT) != mine
                for _ in run.steps(1):
                    if ending:
                        raise ending
        except (ValueError, KeyboardInterrupt):
            pass
        assert {signal.getsignal(n) for n in before} == {mine}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_handlers_are_put_back_when_entering_fails(volume):
    before = signal.getsignal(signal.SIGINT)
    with Training(volume).open(config={"lr": 1}):
        pass
    with pytest.raises(modalkit.RunConfigMismatchError):
        Training(volume).open(config={"lr": 2}).__enter__()
    assert signal.getsignal(signal.SIGINT) == before


def test_a_handler_that_the_body_installed_is_left_alone(volume):
    def theirs(*_: object) -> None: ...

    before = signal.getsignal(signal.SIGTERM)
    with Training(volume).open():
        signal.signal(signal.SIGTERM, theirs)
    try:
        assert signal.getsignal(signal.SIGTERM) == theirs
    finally:
        signal.signal(signal.SIGTERM, before)


def test_no_thread_outlives_the_run(volume):
    before = _thread._count()
    with pytest.raises(KeyboardInterrupt):
        Training(volume).fit(before=at(1, send))
    deadline = time.monotonic() + 5
    while _thread._count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _thread._count() == before


def test_outside_the_main_thread_signals_are_not_watched_and_this_is_said(volume, capsys):
    result = []
    before = signal.getsignal(signal.SIGINT)

    def body() -> None:
        result.append(Training(volume).fit(3))
        result.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert (result[0]["status"], result[1]) == ("finished", before)
    shown = capsys.readouterr().err
    assert shown.count("not in the main thread") == 1


# ---- processes that inherit the handler ---------------------------------------------------------


def test_a_forked_child_ignores_sigint_and_dies_of_sigterm(volume):
    with Training(volume).open() as run:
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(7)
        time.sleep(0.1)
        os.kill(child, signal.SIGINT)
        time.sleep(0.1)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it still works for the current step"
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert not run.should_stop


def test_a_signal_to_workers_too_does_not_disturb_the_step(volume, uninterrupted):
    """An interrupt may reach the whole container; the step that is under way must still end."""

    def to_all() -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGINT)
        time.sleep(0.2)
        send()

    with pytest.raises(KeyboardInterrupt, match="at step 8"):
        Training(volume, workers=2).fit(before=at(7, to_all), checkpoints=NEVER)
    volume = volume.next_container()
    Training(volume).fit()
    Outcome(volume).assert_equals(uninterrupted)
