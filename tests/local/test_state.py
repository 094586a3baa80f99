"""The transition table and the verdicts, without any I/O."""

from itertools import product
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modal_proto import api_pb2

from modalkit.local.state import (
    MAX_LOSSES,
    MAX_STRAY_INTERRUPTS,
    TRANSITIONS,
    App,
    Call,
    Container,
    Event,
    Finish,
    Function,
    IllegalTransitionError,
    Input,
    Requeue,
    Retry,
    State,
    Verdict,
    after_loss,
    after_output,
    retry_delay_s,
)
from modalkit.local.switches import LENIENT, STRICT, Switches


def make_container(**changes: object) -> Container:
    app = App("ap-1", "app", api_pb2.APP_STATE_DEPLOYED)
    function = Function("fu-1", app, api_pb2.Function(), api_pb2.FunctionHandleMetadata())
    container = Container("ta-1", function, "cold", Path(), 0.0)
    for name, value in changes.items():
        setattr(container, name, value)
    return container


def make_input(container: Container, *, retries: int = 0, used: int = 0, losses: int = 0) -> Input:
    container.function.definition.retry_policy.retries = retries
    call = Call("fc-1", container.function, 0)
    return Input("in-1", call, 0, api_pb2.FunctionInput(), retries=used, losses=losses)


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_what_is_not_in_the_table_raises_and_changes_nothing(state: State, event: Event) -> None:
    container = make_container(state=state)
    before = attrs.asdict(container, recurse=False)
    if (state, event) in TRANSITIONS:
        container.on(event)
        assert container.state is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalTransitionError, match="ta-1"):
            container.on(event)
        assert attrs.asdict(container, recurse=False) == before


def test_every_live_state_can_be_reached_and_left() -> None:
    reached = {State.BOOTING}
    for _ in State:
        reached |= {new for (old, _), new in TRANSITIONS.items() if old in reached}
    assert reached == set(State)
    assert {old for (old, event) in TRANSITIONS if event is Event.EXITED} == set(State) - {
        State.EXITED
    }


@given(used=st.integers(0, 12), retries=st.integers(0, 10))
def test_a_failure_uses_a_retry_until_none_is_left(used: int, retries: int) -> None:
    container = make_container()
    item = make_input(container, retries=retries, used=used)
    verdict = after_output(item, container, LENIENT, failed=True, terminated=False)
    assert verdict == (Retry(0.0) if used < retries else Finish())


def test_the_plane_retries_nothing_that_the_client_retries() -> None:
    container = make_container()
    item = make_input(container, retries=3)
    item.call.retried_by_client = True
    assert after_output(item, container, STRICT, failed=True, terminated=False) == Finish()


@pytest.mark.parametrize(
    ("reading", "retries", "expected"),
    [
        ("requeued", 0, Requeue()),
        ("retried", 1, Retry(0.0)),
        ("retried", 0, Finish()),
        ("final", 1, Finish()),
    ],
)
@pytest.mark.parametrize("as_failure", [True, False])
def test_what_a_preempted_attempt_reports_is_read_as_the_switch_says(
    reading: str, retries: int, expected: Verdict, *, as_failure: bool
) -> None:
    switches = Switches(preempted_output=reading)
    container = make_container(is_preempted=True)
    report = {"failed": as_failure, "terminated": not as_failure}
    assert after_output(make_input(container, retries=retries), container, switches, **report) == (
        expected
    )
    container.is_preempted = False
    assert after_output(make_input(container), container, switches, **report) == Finish()


@given(losses=st.integers(0, 20))
def test_a_preempted_container_costs_nothing_and_a_lost_one_is_counted(losses: int) -> None:
    container = make_container()
    item = make_input(container, losses=losses)
    expected = Requeue() if losses < MAX_LOSSES else Finish()
    assert after_loss(item, container, STRICT) == expected
    assert item.losses == losses + 1
    container.is_preempted = True
    assert after_loss(item, container, STRICT) == Requeue()
    assert item.losses == losses + 1


@pytest.mark.parametrize(
    ("reading", "verdicts"),
    [
        ("requeued", [Requeue()] * MAX_STRAY_INTERRUPTS + [Finish()]),
        ("counted", [Requeue()] * MAX_LOSSES + [Finish()]),
        ("fails", [Finish()]),
    ],
)
def test_an_interrupt_that_nobody_sent_is_read_as_the_switch_says(
    reading: str, verdicts: list[Verdict]
) -> None:
    switches = Switches(stray_interrupt=reading)
    container = make_container(left_orderly=True)
    item = make_input(container)
    assert [after_loss(item, container, switches) for _ in verdicts] == verdicts


def test_an_interrupt_that_the_cancellation_of_another_input_caused_costs_nothing() -> None:
    container = make_container(left_orderly=True, is_told_to_cancel=True)
    assert after_loss(make_input(container), container, STRICT) == Requeue()


def test_the_loss_of_a_container_that_failed_to_start_is_final() -> None:
    container = make_container(start_failure=api_pb2.GenericResult())
    assert after_loss(make_input(container), container, LENIENT) == Finish()


@given(
    initial=st.integers(0, 60_000),
    factor=st.floats(1.0, 10.0),
    cap=st.integers(1_000, 60_000),
    used=st.integers(0, 20),
)
def test_no_delay_is_beyond_the_cap(initial: int, factor: float, cap: int, used: int) -> None:
    policy = api_pb2.FunctionRetryPolicy(
        retries=30, initial_delay_ms=initial, backoff_coefficient=factor, max_delay_ms=cap
    )
    delay = retry_delay_s(policy, used)
    assert 0 <= delay <= cap / 1000
    if used == 0:
        assert delay == pytest.approx(min(initial, cap) / 1000)
