"""A clock that can be moved, and those who wait on it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalkit.local.clock import Clock, Pulse


def test_what_falls_due_when_the_clock_is_moved_happens_at_once_and_in_order() -> None:
    async def main() -> list[str]:
        clock, happened = Clock(), []
        clock.call_later(7200, lambda: happened.append("later"))
        clock.call_later(3600, lambda: happened.append("sooner"))
        clock.call_later(9999, lambda: happened.append("never"))
        clock.advance(7200)
        return happened

    assert asyncio.run(main()) == ["sooner", "later"]


def test_a_sleeper_wakes_when_the_clock_is_moved() -> None:
    async def main() -> float:
        clock = Clock()
        before = clock.time()
        sleeper = asyncio.create_task(clock.sleep(3600))
        await asyncio.sleep(0)
        clock.advance(3601)
        await asyncio.wait_for(sleeper, 10)
        return clock.time() - before

    assert 3601 <= asyncio.run(main()) < 3700


def test_real_time_passes_too() -> None:
    asyncio.run(asyncio.wait_for(Clock().sleep(0.01), 10))


def test_a_cancelled_timer_never_rings() -> None:
    async def main() -> list[str]:
        clock, happened = Clock(), []
        timer = clock.call_later(10, lambda: happened.append("rang"))
        timer.cancel()
        clock.advance(20)
        return happened

    assert asyncio.run(main()) == []


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_the_clock_does_not_run_backwards(seconds: float) -> None:
    with pytest.raises(ValueError, match="forwards only"):
        Clock().advance(seconds)


def test_waiting_for_a_condition_looks_at_each_beat_and_ends_in_time() -> None:
    async def main() -> list[bool]:
        clock, pulse, values = Clock(), Pulse(), []
        waiting = asyncio.create_task(clock.wait_until(pulse, lambda: len(values) == 2, 60))
        in_vain = asyncio.create_task(clock.wait_until(pulse, lambda: len(values) == 9, 60))
        for number in range(2):
            await asyncio.sleep(0)
            values.append(number)
            pulse.beat()
        found = await asyncio.wait_for(waiting, 10)
        clock.advance(61)
        return [found, await asyncio.wait_for(in_vain, 10)]

    assert asyncio.run(main()) == [True, False]


@given(
    delays=st.lists(st.integers(0, 100), min_size=1, max_size=20),
    steps=st.lists(st.integers(1, 40), max_size=8),
)
def test_each_timer_rings_once_no_earlier_than_due_and_in_order(
    delays: list[int], steps: list[int]
) -> None:
    async def main() -> None:
        clock, rung, moved = Clock(), [], 0
        for delay in delays:
            clock.call_later(delay, lambda delay=delay: rung.append(delay))
        for step in steps:
            clock.advance(step)
            moved += step
            assert rung == sorted(delay for delay in delays if delay <= moved)

    asyncio.run(main())


def test_a_timer_that_fails_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> bool:
        clock, rung = Clock(), asyncio.Event()
        clock.call_later(0.01, lambda: 1 // 0)
        clock.call_later(0.02, rung.set)
        await asyncio.wait_for(rung.wait(), 10)
        return rung.is_set()

    assert asyncio.run(main())
    assert "ZeroDivisionError" in caplog.text
