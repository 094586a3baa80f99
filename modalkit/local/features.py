"""
What the plane does not model, in the user's words.

Each RPC of Modal's protocol belongs to a feature; what no handler offers is refused in its name.
A function whose definition asks for something that is not modelled is refused, where the app
would do something else without it, or accepted with a warning, where the rest of it works.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import attrs
from modal_proto import api_grpc, api_pb2

from modalkit.local.coverage import Status

_APPS: Final = "Apps"
_CALLS: Final = "function calls"
_CONTAINERS: Final = "containers"
_FUNCTIONS: Final = "Functions and classes"
_IMAGES: Final = "Images"
_INPUT_PLANE: Final = "the input plane, Modal's other way to call functions"
_STATISTICS: Final = "statistics and metrics"
_WORKSPACE: Final = "the management of a workspace (members, tokens, billing, environments)"

FEATURES: Final = {
    "App": _APPS,
    "AppGetTimeRangeStats": f"{_STATISTICS} (`modal app stats`)",
    "AppPromote": "staged deployments (`modal app promote`)",
    "AppRollback": "`modal app rollback`; deploy the old code again instead",
    "AppRollover": "`modal app rollover`; deploy again instead",
    "Attempt": _INPUT_PLANE,
    "AuditLog": "audit logs",
    "AuthTokenGet": f"Sandboxes (`modal.Sandbox`), or {_INPUT_PLANE}",
    "Blob": "large payloads",
    "Class": _FUNCTIONS,
    "CliCommandSuggest": "suggestions of modal's command line",
    "ClientHello": "the first contact of a client",
    "Cluster": "clusters (`modal.experimental.clustered`)",
    "Container": _CONTAINERS,
    "ContainerExec": "`modal container exec` and `modal shell`",
    "ContainerFilesystemExec": "the file system of Sandboxes",
    "ContainerServerLifecycleReady": "Servers (`@app.server`)",
    "Curl": "web endpoints (`modal curl`)",
    "Dict": "Dicts (`modal.Dict`)",
    "Domain": "custom domains of web endpoints",
    "Endpoint": "Endpoints (`modal endpoint`)",
    "Environment": _WORKSPACE,
    "Flash": "Servers and Flash (`@app.server`, `modal.experimental.flash_*`)",
    "Function": _FUNCTIONS,
    "FunctionCall": _CALLS,
    "FunctionCallCount": f"{_STATISTICS} (`modal function calls`)",
    "FunctionCallFetch": f"{_STATISTICS} (`modal function calls`)",
    "FunctionCallGetDataIn": "input streams: web endpoints and `modal shell`",
    "FunctionGetFlashAuthToken": "Servers and Flash (`@app.server`, `modal.experimental.flash_*`)",
    "FunctionGetMetrics": _STATISTICS,
    "FunctionGetTimeRangeStats": f"{_STATISTICS} (`modal function stats`)",
    "FunctionListVariants": "`modal function variants`",
    "FunctionStartPtyShell": "interactive functions (`modal run -i`)",
    "Image": _IMAGES,
    "ImageBuildChainGet": "the logs of image builds; images are recorded here, not built",
    "ImageDelete": "the deletion of images",
    "ImageFromId": "images by id (`Image.from_id`)",
    "ImageGetByTag": "published images (`Image.from_name`)",
    "ImageJoinStreaming": "image builds; images are recorded here, not built",
    "ImageListTags": "published images (`modal image`)",
    "ImageNameDelete": "published images (`modal image`)",
    "ImagePublish": "published images (`Image.publish`)",
    "ImageTagRevisions": "published images (`modal image`)",
    "Map": _INPUT_PLANE,
    "Metrics": _STATISTICS,
    "Mount": "code of your machine in containers",
    "ObjectSuggest": "suggestions of modal's command line",
    "PersistentSandbox": "Sandboxes (`modal.Sandbox`)",
    "Proxy": "Proxies (`modal.Proxy`)",
    "Queue": "Queues (`modal.Queue`)",
    "Sandbox": "Sandboxes (`modal.Sandbox`)",
    "Secret": "Secrets (`modal.Secret`)",
    "Server": f"{_STATISTICS} of Servers (`@app.server`)",
    "ServiceUser": _WORKSPACE,
    "SharedVolume": "network file systems (`modal.NetworkFileSystem`); use a Volume",
    "Task": _CONTAINERS,
    "TaskClusterHello": "clusters (`modal.experimental.clustered`)",
    "TaskGetCommandRouterAccess": "`modal container exec` and `modal shell`",
    "Template": "templates of Modal's dashboard",
    "Token": _WORKSPACE,
    "Tunnel": "tunnels (`modal.forward`)",
    "UserGroup": _WORKSPACE,
    "Volume": "Volumes (`modal.Volume`)",
    "WebhookToken": "the tokens of web endpoints",
    "Workspace": _WORKSPACE,
}
"""Feature by the beginning of an RPC's name; the longest one counts."""


ACCEPTED: Final = frozenset(
    {
        "DictHeartbeat",
        "EnvironmentGetOrCreate",
        "FunctionFinishInputs",
        "ImageGetByTag",
        "QueueHeartbeat",
        "VolumeHeartbeat",
    }
)
"""RPCs that are answered, and from which nothing follows here."""
_NEWER: Final = "a part of Modal that is newer than this modalkit"


@attrs.frozen
class Rpc:
    """
    One RPC of Modal's protocol, as the reference table shows it.

    Attributes:
        name: As in the protocol.
        feature: What of Modal needs it.
        status: How far the plane answers it.
    """

    name: str
    feature: str
    status: Status


def feature(rpc: str) -> str:
    """Return what of Modal needs this RPC."""
    known = [prefix for prefix in FEATURES if rpc.startswith(prefix)]
    return FEATURES[max(known, key=len)] if known else _NEWER


def rpcs(handlers: Iterable[type]) -> list[Rpc]:
    """Return every RPC of the installed modal, by name, given the classes of the handlers."""
    offered = {name for kind in handlers for name in dir(kind)}
    return [
        Rpc(name, feature(name), _status(name, offered))
        for name in sorted(api_grpc.ModalClientBase.__abstractmethods__)
    ]


def _status(rpc: str, offered: Collection[str]) -> Status:
    if rpc not in offered:
        return Status.NOT
    return Status.PARTLY if rpc in ACCEPTED else Status.MODELLED


def refusal(definition: api_pb2.Function) -> str | None:
    """Return why a function cannot be had here, where without that it would go wrong."""
    if definition._experimental_group_size:  # noqa: SLF001 - a field's name
        return "clusters (`modal.experimental.clustered`) are not modelled"
    if definition.cloud_bucket_mounts or definition.s3_mounts:
        return "`CloudBucketMount` is not modelled: its files would be missing; use a Volume"
    if definition.shared_volume_mounts:
        return "`NetworkFileSystem` is not modelled: its files would be missing; use a Volume"
    return None


def warnings(definition: api_pb2.Function) -> list[str]:
    """Return what will not happen here of what a function's definition asks for."""
    name, found = definition.function_name, []
    if definition.schedule.WhichOneof("schedule_oneof"):
        found.append(f"the schedule of {name} is not run here; call it by hand")
    if definition.is_server or definition.HasField("http_config"):
        found.append(f"the server {name} is not reachable here, and has no URL")
    web = [name] if definition.webhook_config.type else []
    web += [
        f"{name.removesuffix('.*')}.{method}"
        for method, details in definition.method_definitions.items()
        if details.webhook_config.type
    ]
    found += [f"the web endpoint {each} is not served here, and has no URL" for each in web]
    if definition.block_network or definition.HasField("network_access"):
        found.append(f"the network of {name} is not restricted here")
    if definition.HasField("proxy_id"):
        found.append(f"the Proxy of {name} is not used here")
    if options := _without_effect(definition):
        found.append(f"without effect here for {name}: {', '.join(options)}")
    return [f"modalkit: {line}" for line in found]


def _without_effect(definition: api_pb2.Function) -> list[str]:
    """Return the options of a function that change nothing here."""
    placement = definition.scheduler_placement
    gpu_snapshot = definition.experimental_options.get("enable_gpu_snapshot", "")
    asked = {
        "ephemeral_disk=": definition.resources.ephemeral_disk_mb,
        "region=": placement.regions,
        "nonpreemptible=": placement.nonpreemptible,
        "cloud=": definition.cloud_provider_str,
        "i6pn=": definition.i6pn_enabled,
        "restrict_modal_access=": definition.untrusted,
        "enable_gpu_snapshot": gpu_snapshot.lower() in {"true", "1"},
    }
    return [option for option, is_set in asked.items() if is_set]
