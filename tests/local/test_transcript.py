"""The transcript says what went over the wire, keeps within bounds, and tells no secret."""

import json
import re
from typing import Any

import modal
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from modal_proto import api_pb2

from modalkit.local import LocalPlane
from modalkit.local import transcript as module
from modalkit.local.clock import Clock
from modalkit.local.transcript import Transcript

from .conftest import APPS

SECRET = "correct-horse-battery"
KINDS = [getattr(api_pb2, name) for name in sorted(api_pb2.DESCRIPTOR.message_types_by_name.keys())]


def recorded(*messages: Message, secrets: tuple[str, ...] = ()) -> Transcript:
    found = Transcript(Clock(), lambda: secrets)
    for message in messages:
        with found.record("client", "AppCreate", message) as record:
            found.answer(record, message)
    return found


def fill(message: Message, text: str, depth: int = 0) -> None:
    """Put *text* into every string and every bytes of a message."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and message.WhichOneof(field.containing_oneof.name):
            continue
        value = {field.TYPE_STRING: text, field.TYPE_BYTES: text.encode()}.get(field.type)
        target = getattr(message, field.name)
        if hasattr(target, "items") and not isinstance(target, Message):
            of_value = field.message_type.fields_by_name["value"]
            if of_value.type == field.TYPE_STRING:
                target[text if field.message_type.fields_by_name["key"].type == 9 else 1] = text
        elif hasattr(target, "append"):
            if value is not None:
                target.append(value)
            elif field.message_type is not None and depth < 4:
                fill(target.add(), text, depth + 1)
        elif value is not None:
            setattr(message, field.name, value)
        elif field.message_type is not None and depth < 4:
            target.SetInParent()
            fill(target, text, depth + 1)


def shown(message: Message, *secrets: str) -> str:
    [rpc] = recorded(message, secrets=secrets).page(0)
    return json.dumps([rpc.request, rpc.reply])


def test_no_message_of_the_protocol_shows_a_secret_of_a_secret_object():
    for kind in KINDS:
        message = kind()
        fill(message, f"a{SECRET}b")
        assert SECRET not in shown(message, SECRET), kind


@pytest.mark.parametrize(
    "message",
    [
        api_pb2.SecretGetOrCreateRequest(env_dict={"A": "1"}),
        api_pb2.TokenFlowWaitResponse(token_secret="1"),
        api_pb2.AuthTokenGetResponse(token="1"),
        api_pb2.FunctionMapResponse(function_call_jwt="1"),
        api_pb2.FunctionPutInputsResponseItem(input_jwt="1"),
        api_pb2.BlobGetResponse(download_url="1"),
        api_pb2.SecretUpdateRequest(updates=[api_pb2.SecretUpdateRequest.Update(value="1")]),
        api_pb2.BlobCreateResponse(upload_url="1"),
        api_pb2.VolumeGetFile2Response(get_urls=["1"]),
    ],
    ids=lambda message: type(message).__name__,
)
def test_fields_that_hold_secrets_are_hidden_whatever_is_in_them(message: Message):
    assert "1" not in shown(message)
    assert "(hidden)" in shown(message)


@given(
    before=st.text(max_size=1200),
    secret=st.text(min_size=5, max_size=40),
    after=st.text(max_size=9),
)
def test_a_secret_is_hidden_wherever_it_stands_in_a_text(before: str, secret: str, after: str):
    result = api_pb2.GenericResult(exception="")
    try:
        result.exception = before + secret + after
    except UnicodeEncodeError:
        return  # a lone surrogate is in no message
    [rpc] = recorded(result, secrets=(secret,)).page(0)
    text = rpc.request["exception"].replace(module.HIDDEN, "\0")
    assert secret not in text.partition("... ")[0] or secret in module.HIDDEN


def test_bytes_are_a_length_and_a_digest_and_long_things_are_cut():
    [rpc] = recorded(
        api_pb2.MountPutFileRequest(sha256_hex="f" * 5000, data=b"abc" * 1000),
        api_pb2.MountBatchedCheckExistenceRequest(sha256_hex_hashes=["x"] * 5000),
    ).page(0)[:1]
    assert rpc.request["data"].startswith("3000 bytes, sha256 ")
    assert rpc.request["sha256_hex"].endswith("... 5000 characters")
    assert len(json.dumps(rpc.request)) < 1000


def test_the_oldest_go_first_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_RPCS", 10)
    found = recorded(*[api_pb2.AppCreateRequest(description=str(i)) for i in range(25)])
    assert [rpc.index for rpc in found.page(0)] == list(range(15, 25))
    assert [rpc.index for rpc in found.page(22)] == [22, 23, 24]
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    begun = found.record("client", "AppCreate", api_pb2.AppCreateRequest())
    for _ in range(9):
        with found.record("client", "X", api_pb2.AppCreateRequest(description="x" * 300)):
            pass
    assert len(found.page(0)) == 3
    found.answer(begun, api_pb2.AppCreateRequest(description="y" * 5000))  # it is long gone
    assert len(found.page(0)) == 3


# ------------------------------------------------------------------ of a whole run


@pytest.fixture(scope="module")
def rpcs(plane: LocalPlane, client: modal.Client) -> list[Any]:
    plane.deploy(str(APPS / "shaken.py"))
    function = modal.Function.from_name("shaken", "tells_its_secret", client=client)
    with pytest.raises(ValueError, match=SECRET):
        function.remote(b"x" * (5 << 20))
    return plane.transcript()


def test_a_run_shows_who_asked_what_in_order(rpcs: list[Any]):
    assert [rpc.index for rpc in rpcs] == list(range(len(rpcs)))
    names = [rpc.name for rpc in rpcs]
    assert names.index("FunctionCreate") < names.index("FunctionMap")
    assert names.index("FunctionMap") < names.index("FunctionPutOutputs")
    [put] = [rpc for rpc in rpcs if rpc.name == "FunctionPutOutputs"]
    assert put.caller.startswith("ta-")
    assert put.status == "OK"
    assert put.reply == {}
    assert next(rpc for rpc in rpcs if rpc.name == "FunctionMap").caller == "client"
    pending = [rpc for rpc in rpcs if rpc.status == "PENDING"]
    assert "ContainerHeartbeat" in {rpc.name for rpc in pending}


def test_a_run_tells_no_secret_and_no_way_to_the_blobs(rpcs: list[Any]):
    text = json.dumps([[rpc.request, rpc.reply] for rpc in rpcs])
    assert {"SecretGetOrCreate", "BlobCreate", "BlobGet"} <= {rpc.name for rpc in rpcs}
    assert SECRET not in text
    assert "cannot log in with (hidden)" in text
    assert not re.search(r"127\.0\.0\.1:\d+/", text)


def test_one_name_can_be_asked_for_and_a_part(plane: LocalPlane, rpcs: list[Any]):
    assert {rpc.name for rpc in plane.transcript(name="FunctionMap")} == {"FunctionMap"}
    assert plane.transcript(since=len(rpcs) - 1)[0].index == len(rpcs) - 1
