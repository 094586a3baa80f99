"""What a container finds when it starts: code, Volume views, environment, arguments."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modal_proto import api_pb2

from modalkit.local.core import ENVIRONMENT
from modalkit.local.image_commands import ImageFacts
from modalkit.local.layout import app_layout
from modalkit.local.state import Container, new_id
from modalkit.local.trees import copy
from modalkit.local.volumes import View

if TYPE_CHECKING:
    from modalkit.local.core import Plane

CODE_DIRECTORIES = ("root", "pkg")
"""Code mounted below these is found through sys.path; other targets are mounted in place."""
INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|TERM|LD_.*|CUDA_.*|NVIDIA_.*|OMP_.*"
    r"|MKL_.*|SSL_.*|[a-zA-Z]+_(proxy|PROXY)"
)
"""Of this machine's environment. A token that the app has no Secret for is not there on Modal."""


class ContainerFiles:
    """Writes what one container after the other starts from."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane

    def lay_out(self, container: Container) -> list[dict[str, Any]]:
        """Write the container's code and Volume views; return what is to be mounted where."""
        directory = container.directory
        (directory / "root").mkdir(parents=True)
        mounts: list[dict[str, Any]] = []
        for mount_id in container.function.definition.mount_ids:
            for file in self.plane.mounts.get(mount_id, []):
                mounts += self._place(directory, file)
        for volume_mount in container.function.definition.volume_mounts:
            view = View(
                self.plane.volumes.by_id(volume_mount.volume_id),
                self.plane.views / container.id / volume_mount.volume_id,
                read_only=volume_mount.read_only,
            )
            container.views[volume_mount.volume_id] = view
            source = view.path / volume_mount.sub_path.strip("/")
            source.mkdir(parents=True, exist_ok=True)
            mounts.append(
                {
                    "source": str(source),
                    "target": volume_mount.mount_path,
                    "read_only": volume_mount.read_only,
                }
            )
        return mounts

    def _place(self, directory: Path, file: api_pb2.MountFile) -> list[dict[str, Any]]:
        relative = Path(os.path.normpath(file.filename.lstrip("/")))
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"mount file {file.filename!r} points outside of the image")
        target = directory / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a later layer hides an earlier one
        copy(self.plane.file_store / file.sha256_hex, target)  # a link would share what it writes
        target.chmod(file.mode & 0o777 or 0o644)
        if relative.parts[0] in CODE_DIRECTORIES:
            return []
        return [{"source": str(target), "target": f"/{relative}", "read_only": True}]

    def environment(self, container: Container, facts: ImageFacts) -> dict[str, str]:
        """Merge this machine's environment, the image's, the secrets', and what a worker sets."""
        directory, function = container.directory, container.function
        inherited = {name: v for name, v in os.environ.items() if INHERITED.fullmatch(name)}
        secrets: dict[str, str] = {}
        for secret_id in function.definition.secret_ids:
            secrets.update(self.plane.objects.secret(secret_id))
        interpreter = str(Path(self.plane.config.python).parent)
        code = [str(directory / name) for name in CODE_DIRECTORIES]
        runtime = {
            "PATH": os.pathsep.join([interpreter, inherited.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(filter(None, [*code, facts.env.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            "MODAL_IS_REMOTE": "1",
            "MODAL_SERVER_URL": f"unix://{directory}/plane.sock",
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(directory / "arguments.pb"),
            "MODAL_RESTORE_STATE_PATH": str(directory / "restore-state.json"),
            "MODAL_TASK_ID": container.id,
            "MODAL_IMAGE_ID": function.definition.image_id,
            "MODAL_ENVIRONMENT": ENVIRONMENT,
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_UNSPECIFIED",
            "MODAL_REGION": "local",
        }
        if container.kind != "cold":
            runtime["MODAL_ENABLE_SNAP_RESTORE"] = "1"
        return {**inherited, **facts.env, **secrets, **runtime}

    def write_arguments(self, container: Container) -> None:
        """Write what the entrypoint is told about its function and app."""
        function = container.function
        arguments = api_pb2.ContainerArguments(
            task_id=container.id,
            function_id=function.id,
            app_id=function.app.id,
            function_def=function.definition,
            environment_name=ENVIRONMENT,
            app_layout=app_layout(self.plane, function.app, function),
            serialized_params=function.parameters,
        )
        if container.kind == "snapshotting":
            arguments.checkpoint_id = new_id("ch")
            arguments.function_def.is_checkpointing_function = True
        (container.directory / "arguments.pb").write_bytes(arguments.SerializeToString())

    def guard(self, container: Container, facts: ImageFacts) -> dict[str, Any] | None:
        """Return the import guard's arguments; None where the image cannot be read in full."""
        if facts.unread:
            line = (
                f"modalkit: imports are not checked, since this cannot be read: {facts.unread[0]}"
            )
            self.plane.say_once(container, line)
            return None
        return {
            "packages": sorted(facts.packages),
            "strict": self.plane.config.strict_image,
            "roots": [str(container.directory / name) for name in CODE_DIRECTORIES],
        }
