"""What is not modelled is said, when and in which words."""

import asyncio
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import modal
import pytest
from google.protobuf.empty_pb2 import Empty
from grpclib.exceptions import GRPCError
from modal._utils.async_utils import synchronizer
from modal_proto import api_grpc, api_pb2

from modalkit.local import LocalPlane, features
from modalkit.local.clock import Clock
from modalkit.local.coverage import Status
from modalkit.local.faults import FaultTable
from modalkit.local.services import HANDLERS
from modalkit.local.services.uploads import UploadService
from modalkit.local.transcript import Transcript
from modalkit.local.wire import Line, servicer

APP = """
import modal

app = modal.App("wishful")


@app.function(schedule=modal.Period(hours=1))
def nightly():
    pass


@app.function()
@modal.web_server(8000)
def site():
    pass


@app.cls()
class Model:
    @modal.method()
    def predict(self) -> int:
        return 7

    @modal.asgi_app()
    def web(self):
        pass


@app.function(block_network=True)
def offline():
    pass


@app.local_entrypoint()
def main():
    print("STILL", Model().predict.remote(), site.get_web_url())
"""


def test_every_rpc_of_modal_belongs_to_a_feature() -> None:
    table = features.rpcs(HANDLERS)
    assert {rpc.name for rpc in table} == set(api_grpc.ModalClientBase.__abstractmethods__)
    assert all(rpc.feature for rpc in table)
    by_name = {rpc.name: rpc for rpc in table}
    assert by_name["DictPop"].status is Status.MODELLED
    assert by_name["ImageGetByTag"].status is Status.PARTLY
    assert by_name["SandboxCreateV2"].status is Status.NOT
    assert by_name["SandboxCreateV2"].feature == "Sandboxes (`modal.Sandbox`)"
    assert by_name["TaskClusterHello"].feature.startswith("clusters")


def test_an_rpc_of_a_newer_modal_is_refused_in_words_too() -> None:
    assert "newer than this modalkit" in features.feature("TeleportNow")


def test_no_feature_is_there_for_nothing() -> None:
    names = api_grpc.ModalClientBase.__abstractmethods__
    assert names >= features.ACCEPTED
    assert [p for p in features.FEATURES if not any(n.startswith(p) for n in names)] == []


def test_an_unknown_rpc_answers_its_feature_its_name_and_modals_version() -> None:
    class Stream:
        async def recv_message(self) -> Empty:
            return Empty()

    clock = Clock()
    line = Line("client", clock, Transcript(clock, list), FaultTable(str))
    plane = servicer([], modal_version="1.6.4", line=line)
    for name in sorted(api_grpc.ModalClientBase.__abstractmethods__):
        with pytest.raises(GRPCError) as refusal:
            asyncio.run(getattr(plane, name)(Stream()))
        assert features.feature(name) in refusal.value.message
        assert f"RPC {name}, modal 1.6.4" in refusal.value.message


@pytest.mark.slow
def test_what_will_not_happen_is_said_and_the_rest_works(plane: LocalPlane, tmp_path: Path) -> None:
    path = tmp_path / "wishful.py"
    path.write_text(APP)
    for done in (
        plane.run(f"{path}::main", capture=True, check=False),
        plane.deploy(str(path), check=False),
    ):
        said = re.sub(r"[\s│]+", " ", done.stdout + done.stderr)  # rich breaks lines
        assert done.returncode == 0, said
        for line in (
            "modalkit: the schedule of nightly is not run here; call it by hand",
            "modalkit: the web endpoint site is not served here, and has no URL",
            "modalkit: the web endpoint Model.web is not served here",
            "modalkit: the network of offline is not restricted here",
        ):
            assert line in said
        assert "Model.predict" not in said
        assert ("STILL 7 \n" in done.stdout) == ("::main" in " ".join(done.args))


def test_a_deploy_says_why_it_failed_and_what_it_warns_of(
    plane: LocalPlane, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('the true reason')")
    with pytest.raises(subprocess.CalledProcessError) as failure:
        plane.deploy(str(path))
    assert "the true reason" in "".join(failure.value.__notes__)
    path.write_text(
        "import modal\n"
        "app = modal.App('said')\n"
        "@app.function(schedule=modal.Period(hours=1))\n"
        "def hourly():\n    pass\n"
    )
    plane.deploy(str(path))
    out, err = capfd.readouterr()
    assert "the schedule of hourly is not run here" in err
    assert out == ""


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ({"scheduler_placement": {"regions": ["eu"], "nonpreemptible": True}}, "region=, nonpre"),
        ({"resources": {"ephemeral_disk_mb": 1}, "cloud_provider_str": "aws"}, "disk=, cloud="),
        ({"i6pn_enabled": True, "untrusted": True}, "i6pn=, restrict_modal_access="),
        ({"experimental_options": {"enable_gpu_snapshot": "True"}}, "enable_gpu_snapshot"),
        ({"experimental_options": {"enable_gpu_snapshot": "False"}}, None),
    ],
)
def test_options_without_effect_are_said(definition: dict, said: str | None) -> None:
    found = features.warnings(api_pb2.Function(function_name="f", **definition))
    assert len(found) == (said is not None)
    assert all(said in line and "without effect here for f: " in line for line in found)


@pytest.mark.parametrize(
    ("decorators", "options", "said"),
    [
        ("@modal.experimental.clustered(2)", "", "clusters .*are not modelled"),
        (
            "",
            'volumes={"/data": modal.CloudBucketMount("b")}',
            "`CloudBucketMount` is not modelled",
        ),
    ],
)
def test_what_would_go_wrong_is_refused(
    plane: LocalPlane, tmp_path: Path, decorators: str, options: str, said: str
) -> None:
    path = tmp_path / "refused.py"
    path.write_text(
        "import modal, modal.experimental\n"
        "app = modal.App('refused')\n"
        f"@app.function({options})\n{decorators}\n"
        "def f():\n    pass\n"
    )
    done = plane.run(f"{path}::f", capture=True, check=False)
    assert done.returncode == 1
    assert re.search(said, re.sub(r"[\s│]+", " ", done.stdout + done.stderr))


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda c: modal.Sandbox.create("ls", app=found(c), client=c), "Sandboxes"),
        (lambda c: modal.Workspace.from_context(client=c).members.list(), "workspace"),
    ],
)
def test_other_features_are_refused_by_their_names(client: modal.Client, ask, said: str) -> None:
    with pytest.raises(modal.exception.UnimplementedError, match=said):
        ask(client)


def found(client: modal.Client) -> modal.App:
    return modal.App.lookup("made-for-features", create_if_missing=True, client=client)


blocking = synchronizer.create_blocking


# ------------------------------------------------------------------ names that lead elsewhere


class Parts:
    """What the service needs of a plane."""

    def __init__(self, root: Path) -> None:
        self.file_store = self.blob_store = root
        self.mounts: dict[str, list] = {}

    def blob_url(self, relative: str) -> str:
        return relative


@pytest.mark.parametrize("name", ["../x", "/root/../../x", "", "/", ".", "a/../..", "/root/\0"])
def test_mount_files_cannot_leave_the_container(tmp_path: Path, name: str) -> None:
    digest = "0" * 64
    (tmp_path / digest).write_text("x")
    file = api_pb2.MountFile(filename=name, sha256_hex=digest)
    request = api_pb2.MountGetOrCreateRequest(files=[file])
    with pytest.raises(GRPCError, match="points outside of the image"):
        asyncio.run(UploadService(Parts(tmp_path)).MountGetOrCreate(request))
    file.filename = "/root/a/../x.py"
    asyncio.run(
        UploadService(Parts(tmp_path)).MountGetOrCreate(
            api_pb2.MountGetOrCreateRequest(files=[file])
        )
    )


def test_content_is_named_by_its_hash_alone(tmp_path: Path) -> None:
    service = UploadService(Parts(tmp_path))
    file = api_pb2.MountFile(filename="/root/x", sha256_hex="../../etc/passwd")
    with pytest.raises(GRPCError, match="is no sha256"):
        asyncio.run(service.MountGetOrCreate(api_pb2.MountGetOrCreateRequest(files=[file])))
    with pytest.raises(GRPCError, match="is no sha256"):
        asyncio.run(service.MountPutFile(api_pb2.MountPutFileRequest(sha256_hex="../x", data=b"")))
    file.sha256_hex = "1" * 64
    with pytest.raises(GRPCError, match="never uploaded"):
        asyncio.run(service.MountGetOrCreate(api_pb2.MountGetOrCreateRequest(files=[file])))
    for blob in ("../x", "bl-1/../x", ".."):
        put = api_pb2.MountPutFileRequest(sha256_hex="2" * 64, data_blob_id=blob)
        for call in (
            service.MountPutFile(put),
            service.BlobGet(api_pb2.BlobGetRequest(blob_id=blob)),
        ):
            with pytest.raises(GRPCError, match="is no blob's id"):
                asyncio.run(call)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", "x" * 65])
def test_names_of_apps_are_checked(client: modal.Client, name: str) -> None:
    async def create() -> None:
        await client._stub.AppGetOrCreate(
            api_pb2.AppGetOrCreateRequest(
                app_name=name,
                object_creation_type=api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING,
            )
        )

    with pytest.raises(modal.exception.InvalidError, match="is no app's name"):
        blocking(create)()


def test_payload_addresses_lead_to_payloads_only(plane: LocalPlane, client: modal.Client) -> None:
    async def address() -> str:
        return (await client._stub.BlobCreate(api_pb2.BlobCreateRequest())).upload_url

    url = blocking(address)()
    for name in ("..", "%2e%2e%2fplane.sock", "..%2f..%2fetc%2fpasswd", "x", "bl-%2e"):
        for method in ("GET", "PUT"):
            request = urllib.request.Request(
                f"{url.rpartition('/')[0]}/{name}", method=method, data=b"x"
            )
            with pytest.raises(urllib.error.HTTPError) as refusal:
                urllib.request.urlopen(request)
            assert refusal.value.code in (404, 405)
