"""
What the local plane costs, each time beside a peer that does the least there is to do.

A deployed app, the real client, one plane. A figure and its peer are measured in turns, so that a
load of the machine meets both alike; ratios are medians of pairs.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import modal
from grpclib.client import Channel, UnaryUnaryMethod
from modal_proto import api_pb2

from benchmarks import echo_server
from benchmarks.metrics import Metric
from modalkit.local import LocalPlane

APP = Path(__file__).with_name("plane_app.py")
PAYLOAD = bytes(range(256)) * 4
CONTAINERS = 8
IDLE_S = 10.0
WARM_UP = 20
PATIENCE_S = 120.0
CODE = "import time, modal{}; print(time.time())"


def measure(*, quick: bool) -> list[Metric]:
    """Measure the figures that modalkit promises about its plane."""
    with (
        LocalPlane(engine="fork", quick_starts=False) as plane,
        LocalPlane(engine="inline", quick_starts=True) as quick_plane,
    ):
        for one in (plane, quick_plane):
            one.deploy(str(APP))
        bench = Bench(plane)
        return [
            bench.remote(rounds=100 if quick else 400),
            *bench.idle(),
            *bench.maps(quick=quick),
            *bench.starts(Bench(quick_plane), rounds=3 if quick else 9),
        ]


class Bench:
    """One plane with the app of these measurements deployed."""

    def __init__(self, plane: LocalPlane) -> None:
        self._plane = plane
        self._client = plane.client()

    def _function(self, name: str) -> modal.Function[..., Any, Any]:
        return modal.Function.from_name("bench", name, client=self._client)

    def remote(self, rounds: int) -> Metric:
        """Compare `.remote()` with a bare call of the same payload, the least that gRPC allows."""
        function = self._function("echo")
        with echo() as bare:
            found = pairs(bare, lambda: function.remote(PAYLOAD), rounds)
        bare_ms, remote_ms = (1000 * statistics.median(side) for side in zip(*found, strict=True))
        say(f".remote() {remote_ms:.2f} ms, a bare echo {bare_ms:.2f} ms")
        ratio = statistics.median(b / a for a, b in found)
        return Metric(id="remote_over_echo_ratio", value=ratio, floor=6, stretch=4)

    def idle(self) -> list[Metric]:
        """Measure a plane, and one container of it, that nobody wants anything of."""
        [container] = self._plane.containers()
        pids = {"plane": self._plane.pid, "container": container.pid}
        time.sleep(1)  # what the last call left to do
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        begin = perf_counter()
        time.sleep(IDLE_S)
        share = 100 / (perf_counter() - begin)
        used = {name: share * (cpu_s(pid) - before[name]) for name, pid in pids.items()}
        return [
            Metric(id=f"idle_{name}_percent", value=percent, floor=1, stretch=0.2)
            for name, percent in used.items()
        ]

    def maps(self, *, quick: bool) -> list[Metric]:
        """Measure `.map` over containers that are warm."""
        function = self._function("trivial")
        deadline = time.monotonic() + PATIENCE_S
        while sum(c.function == "trivial" for c in self._plane.containers()) < CONTAINERS:
            assert time.monotonic() < deadline, f"there are no {CONTAINERS} containers"
            list(function.map(range(4 * CONTAINERS), kwargs={"seconds": 0.2}))
        per_input_s = statistics.median(map_s(function, 1000) for _ in range(1 if quick else 5))
        rate = Metric(
            id="map_inputs_per_s",
            value=1 / per_input_s,
            floor=150,
            stretch=400,
            more_is_better=True,
        )
        if quick:
            return [rate]
        ratio = map_s(function, 10_000) / per_input_s
        return [rate, Metric(id="map_10000_over_1000_ratio", value=ratio, floor=1.3, stretch=1.1)]

    def starts(self, quick: Bench, rounds: int) -> list[Metric]:
        """Compare cold starts with bare imports, *quick* ones too, and restored with cold ones."""
        function = self._function("start")
        cold = modal.Cls.from_name("bench", "ColdTorch", client=self._client)()
        restored = modal.Cls.from_name("bench", "RestoredTorch", client=self._client)()
        self._start_s(restored.start)  # makes the snapshot
        rows = [
            {
                "modal": import_s(""),
                "plain": self._start_s(function),
                "quick": quick._start_s(quick._function("start")),
                "torch": import_s(", torch"),
                "cold": self._start_s(cold.start),
                "restored": self._start_s(restored.start),
            }
            for _ in range(rounds + 1)
        ][1:]
        for name in rows[0]:
            say(f"{name}: {statistics.median(row[name] for row in rows):.3f} s")

        def ratio(this: str, peer: str) -> float:
            return statistics.median(row[this] / row[peer] for row in rows)

        return [
            Metric(
                id="cold_over_import_ratio", value=ratio("plain", "modal"), floor=1.3, stretch=1.2
            ),
            Metric(
                id="quick_over_import_ratio", value=ratio("quick", "modal"), floor=0.3, stretch=0.15
            ),
            Metric(
                id="cold_torch_over_import_ratio",
                value=ratio("cold", "torch"),
                floor=1.3,
                stretch=1.1,
            ),
            Metric(
                id="restored_over_cold_ratio",
                value=ratio("restored", "cold"),
                floor=0.1,
                stretch=0.05,
            ),
        ]

    def _start_s(self, function: modal.Function[..., Any, Any]) -> float:
        """Return the seconds from the launch of a new container to the first line of the app's."""
        first_line, identifier = function.remote()
        [container] = [c for c in self._plane.containers(all=True) if c.id == identifier]
        self._plane.wait_for(lambda found: all(c.id != identifier or not c.is_alive for c in found))
        return first_line - container.launched_at


def pairs(
    first: Callable[[], object], second: Callable[[], object], rounds: int
) -> list[tuple[float, float]]:
    """Call both in turns; return the seconds of each pair, without those of the warm-up."""
    return [(seconds(first), seconds(second)) for _ in range(WARM_UP + rounds)][WARM_UP:]


def seconds(call: Callable[[], object]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


def map_s(function: modal.Function[..., Any, Any], inputs: int) -> float:
    """Return the seconds per input of one `.map`."""
    begin = perf_counter()
    found = sum(1 for _ in function.map(range(inputs)))
    assert found == inputs
    return (perf_counter() - begin) / inputs


def import_s(more: str) -> float:
    """Return the seconds from the start of an interpreter to the end of its imports."""
    begin = time.time()
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(more)], capture_output=True, check=True, text=True
    )
    return float(done.stdout) - begin


def cpu_s(pid: int) -> float:
    """Return the seconds that a process has computed so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def echo() -> Iterator[Callable[[], None]]:
    """Serve a bare echo from a process of its own, and yield what calls it."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/echo.sock"
        server = subprocess.Popen([sys.executable, echo_server.__file__, path])
        deadline = time.monotonic() + PATIENCE_S
        while not Path(path).exists():
            assert time.monotonic() < deadline, "the echo server does not start"
            time.sleep(0.01)
        loop = asyncio.new_event_loop()
        channel = Channel(path=path, loop=loop)
        method = UnaryUnaryMethod(
            channel, echo_server.NAME, api_pb2.FunctionInput, api_pb2.FunctionInput
        )
        message = api_pb2.FunctionInput(args=PAYLOAD)
        try:
            yield lambda: loop.run_until_complete(method(message))
        finally:
            channel.close()
            loop.close()
            server.kill()
            server.wait()


def say(text: str) -> None:
    print(text, file=sys.stderr)
