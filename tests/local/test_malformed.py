"""Whatever arrives on its sockets, the plane answers or hangs up, lives on, and serves others."""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import modal
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modal_proto import api_pb2

from modalkit.local import LocalPlane

from .conftest import APPS

ANSWER_S = 20.0
HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
INVALID_ARGUMENT, UNIMPLEMENTED = "3", "12"


@pytest.fixture(scope="module", autouse=True)
def is_unharmed(plane: LocalPlane, client: modal.Client) -> Iterator[modal.Function]:
    """After all of it, the same plane serves the same client and the same container."""
    plane.deploy(str(APPS / "functions.py"))
    function = modal.Function.from_name("functions", "square", client=client)
    assert function.remote(3) == 9
    [before] = [c.id for c in plane.containers()]
    yield function
    os.kill(plane.pid, 0)
    assert function.remote(4) == 16
    assert [c.id for c in plane.containers()] == [before]


@pytest.fixture(params=["client", "container"])
def path(request: pytest.FixtureRequest, plane: LocalPlane) -> str:
    directory = Path(plane.env["MODAL_SERVER_URL"].removeprefix("unix://")).parent
    if request.param == "client":
        return str(directory / "plane.sock")
    [container] = [c.id for c in plane.containers()]
    return str(directory / "t" / container / "plane.sock")


@contextlib.contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_S)
        connection.connect(path)
        yield connection


def status_of(path: str, method: str, body: bytes, *, drop: str = "") -> str:
    """Send one request as it stands; return the gRPC status, or "closed" if the plane hangs up."""
    with connected(path) as connection:
        http = h2.connection.H2Connection(
            # As grpclib's client: a status message may end with a space.
            h2.config.H2Configuration(header_encoding="ascii", validate_inbound_headers=False)
        )
        http.initiate_connection()
        headers = [*HEADERS, (":path", f"/modal.client.ModalClient/{method}")]
        headers.sort(key=lambda header: not header[0].startswith(":"))
        http.send_headers(1, [header for header in headers if header[0] != drop])
        http.send_data(1, body, end_stream=True)
        connection.sendall(http.data_to_send())
        found: dict[str, str] = {}
        while data := connection.recv(1 << 16):
            for event in http.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    found.update(event.headers)
                if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    return found.get("grpc-status", "reset")
            connection.sendall(http.data_to_send())
        return "closed"


def frame(message: bytes, *, length: int | None = None, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


GOOD = api_pb2.AppCreateRequest(description="x").SerializeToString()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(frame(b"\xff" * 40), id="no message"),
        pytest.param(frame(GOOD, length=len(GOOD) + 50), id="cut short"),
        pytest.param(frame(GOOD, length=0xFFFFFFFF), id="huge length"),
        pytest.param(frame(GOOD, flag=1), id="compressed"),
        pytest.param(frame(GOOD)[:3], id="cut in its head"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_request_that_is_none_is_refused(path: str, body: bytes):
    assert status_of(path, "AppCreate", body) == INVALID_ARGUMENT


def test_another_kind_of_message_names_nothing_that_is_there(path: str):
    other = api_pb2.FunctionCreateRequest(app_id="a", existing_function_id="b").SerializeToString()
    for method in ("VolumeCommit", "FunctionMap", "AppPublish"):
        assert status_of(path, method, frame(other)) not in {"0", "closed", "reset"}


def test_an_rpc_that_nobody_knows_is_not_implemented(path: str):
    assert status_of(path, "NoSuchRpc", frame(b"")) == UNIMPLEMENTED


@pytest.mark.parametrize("header", ["te", "content-type", ":method"])
def test_a_request_without_its_headers_ends(path: str, header: str):
    with contextlib.suppress(h2.exceptions.ProtocolError):
        assert status_of(path, "AppCreate", frame(GOOD), drop=header) != "0"


def drained(path: str, data: bytes) -> None:
    """Send *data*, say that this was all, and wait until the plane hangs up."""
    with connected(path) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass


def preface(method: str, body: bytes) -> bytes:
    http = h2.connection.H2Connection()
    http.initiate_connection()
    path = (":path", f"/modal.client.ModalClient/{method}")
    http.send_headers(1, [HEADERS[0], path, *HEADERS[1:]])
    http.send_data(1, body, end_stream=True)
    return http.data_to_send()


WHOLE = preface("AppCreate", frame(GOOD))
MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@MANY
@given(data=st.binary(max_size=300))
def test_noise_ends_the_connection(path: str, data: bytes):
    drained(path, data)


@MANY
@given(
    position=st.integers(0, len(WHOLE) - 1),
    replaced=st.binary(min_size=1, max_size=6),
    cut=st.integers(0, len(WHOLE)),
)
def test_a_damaged_request_ends_the_connection(path: str, position: int, replaced: bytes, cut: int):
    drained(path, (WHOLE[:position] + replaced + WHOLE[position + len(replaced) :])[:cut])


@MANY
@given(
    method=st.sampled_from(
        ["FunctionPutInputs", "FunctionCreate", "VolumePutFiles2", "AppPublish"]
    ),
    body=st.binary(max_size=120),
)
def test_any_message_is_answered(path: str, method: str, body: bytes):
    assert status_of(path, method, frame(body)) not in {"closed", "reset"}


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe garbage",
        b"[]",
        b"{}",
        b'{"op": 3}',
        b'{"op": "no-such-thing"}',
        b'{"op": "kill"}',
        b'{"op": "kill", "container": {}}',
        b'{"op": "logs", "since": "x"}',
        b'{"op": "advance", "seconds": "x"}',
        b'{"op": "advance", "seconds": -1}',
        b'{"op": "plant_fault", "rpc": 7}',
        b'{"op": "fault_strikes", "number": 99}',
    ],
)
def test_the_control_socket_answers_nonsense_with_an_error(plane: LocalPlane, line: bytes):
    control = Path(plane.env["MODAL_SERVER_URL"].removeprefix("unix://")).with_name("control.sock")
    with connected(str(control)) as connection, connection.makefile("rb") as stream:
        connection.sendall(line + b"\n")
        assert json.loads(stream.readline())["error"]
        connection.sendall(b'{"op": "time"}\n')  # the connection is still good
        assert json.loads(stream.readline())["result"] > 0


def test_the_control_socket_hangs_up_on_a_line_without_an_end(plane: LocalPlane):
    control = Path(plane.env["MODAL_SERVER_URL"].removeprefix("unix://")).with_name("control.sock")
    with connected(str(control)) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"x" * (1 << 20))
        assert connection.recv(10) == b""
    assert plane.clock.time() > 0


def test_others_are_served_while_one_sends_half_a_request(
    path: str, is_unharmed: Callable[[int], int]
):
    with connected(path) as connection:
        connection.sendall(WHOLE[: len(WHOLE) - 5])
        assert is_unharmed.remote(5) == 25  # type: ignore[attr-defined]
