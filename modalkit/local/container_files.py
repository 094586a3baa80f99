"""What a container finds when it starts: code, Volume views, environment, arguments."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modal_proto import api_pb2

from modalkit.errors import PrivateMountsError
from modalkit.local import gpus
from modalkit.local.core import ENVIRONMENT
from modalkit.local.image_commands import ImageFacts, normal
from modalkit.local.layout import app_layout, mounted_volume
from modalkit.local.machine import Machine
from modalkit.local.mounts import Mount
from modalkit.local.staging import HOME, shown
from modalkit.local.state import Container, Function, new_id
from modalkit.local.trees import copy
from modalkit.local.views import Kind, View, is_large, overlay_problem
from modalkit.local.volumes import Volume

if TYPE_CHECKING:
    from modalkit.local.core import Plane

CODE_DIRECTORIES = ("root", "pkg")
"""Those of the image that are on PYTHONPATH; without private mounts there can be no others."""
GPUS = "CUDA_VISIBLE_DEVICES"
SHARED_FILES = (
    "modalkit: the Volume {!r} is large: containers share its files through an overlay instead of "
    "copying them. Unlike on Modal, renaming a directory that was committed before a container "
    "started fails there (EXDEV)"
)
COPIED = "modalkit: the Volume {!r} is large and is copied for each container: {}"
INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|TERM|LD_.*|CUDA_.*|NVIDIA_.*|OMP_.*"
    r"|MKL_.*|SSL_.*|[a-zA-Z]+_(proxy|PROXY)"
)
"""Of this machine's environment. A token that the app has no Secret for is not there on Modal."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ORT_INTRA_OP_NUM_THREADS")
"""What Modal documents as set from `cpu=`; how it rounds is not known, here up."""


class ContainerFiles:
    """Writes what one container after the other starts from."""

    def __init__(self, plane: Plane, machine: Machine) -> None:
        self.plane = plane
        self.machine = machine
        self._overlay_problem: str | None = None
        """Why overlays cannot be used here; "" where they can, None where it is not known yet."""

    def require_mounts(self, container: Container) -> None:
        """
        Refuse early, with the remedy, what this machine cannot do.

        Raises:
            PrivateMountsError: The container needs private mounts, and there are none.
        """
        if self.machine.refusal is None:
            return
        tops = [(path, _top(path)) for path in self._files(container)]
        # Those with a dot are the requirement files that modal's methods upload.
        elsewhere = [p for p, top in tops if top not in CODE_DIRECTORIES and top[0] != "."]
        if elsewhere:
            raise PrivateMountsError(f"the image has {elsewhere[0]}; {self.machine.refusal}")
        if container.function.definition.volume_mounts:
            raise PrivateMountsError(self.machine.refusal)
        line = f"nothing is found below /root by an absolute path here: {self.machine.refusal}"
        self.plane.say_once(container, f"modalkit: {line}")

    def lay_out(self, container: Container) -> list[Mount]:
        """Write the container's code and Volume views; return what is to be mounted where."""
        staged = self._staged(container)
        (staged / "root").mkdir(parents=True)
        for path, file in self._files(container).items():
            self._place(staged / path.lstrip("/"), file)
        workdir = self._facts(container).workdir or str(HOME)
        if self.machine.refusal or not Path(workdir).is_dir() or _top(workdir) in CODE_DIRECTORIES:
            (staged / workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
        mounts: list[Mount] = [] if self.machine.refusal else shown(staged, self._needed())
        for volume_mount in container.function.definition.volume_mounts:
            mounts.append(self._show(container, volume_mount, mounts))
        return mounts

    def _show(
        self, container: Container, mount: api_pb2.VolumeMount, others: Sequence[Mount]
    ) -> Mount:
        """Make the view of one Volume; return how it is to be mounted, beside the *others*."""
        volume = mounted_volume(self.plane, mount.volume_id, mount.mount_path)
        sub_path = mount.sub_path.strip("/")
        volume.require_directory(sub_path, create=not mount.read_only)
        view = View(
            volume,
            self.plane.views / container.id / mount.volume_id,
            kind=self._kind(container, volume, mount, others),
            read_only=mount.read_only,
            mounted_at=mount.mount_path,
            sub_path=sub_path,
            in_background=mount.allow_background_commits,
        )
        container.views[mount.volume_id] = view
        source = view.path / sub_path
        if mount.read_only:  # where it is missing, an empty one is shown, and nothing is written
            source.mkdir(parents=True, exist_ok=True)
        return {
            "source": str(source),
            "target": mount.mount_path,
            "read_only": mount.read_only,
            "overlay": view.overlay,
        }

    def _kind(
        self,
        container: Container,
        volume: Volume,
        mount: api_pb2.VolumeMount,
        others: Sequence[Mount],
    ) -> Kind:
        if mount.read_only:
            return "links"
        if not is_large(volume):
            return "copy"
        # An overlay is entered through the container's own file system, where a mount may hide it.
        targets = [m.mount_path for m in container.function.definition.volume_mounts]
        targets += [other["target"] for other in others]
        hidden = any(self.plane.views.resolve().is_relative_to(target) for target in targets)
        if self._overlay_problem is None:
            self._overlay_problem = overlay_problem(self.plane.views) or ""
        if hidden or self._overlay_problem:
            reason = self._overlay_problem or "a mount hides the place of its overlay"
            self.plane.say_once(container, COPIED.format(volume.name or volume.id, reason))
            return "copy"
        self.plane.say_once(container, SHARED_FILES.format(volume.name or volume.id))
        return "overlay"

    def working_directory(self, container: Container) -> str:
        """Return where the container's program starts."""
        workdir = self._facts(container).workdir or str(HOME)
        return f"{self._staged(container)}{workdir}" if self.machine.refusal else workdir

    def _facts(self, container: Container) -> ImageFacts:
        return self.plane.image_facts(container.function.definition.image_id)

    def _staged(self, container: Container) -> Path:
        return container.directory / "files"

    def _files(self, container: Container) -> dict[str, api_pb2.MountFile]:
        """Return the files of the image, and those that are mounted over them, by their path."""
        files: dict[str, api_pb2.MountFile] = dict(self._facts(container).files)
        for mount_id in container.function.definition.mount_ids:
            for file in self.plane.mounts[mount_id].files:
                if ".." in Path(file.filename).parts:
                    raise ValueError(f"mount file {file.filename!r} points outside of the image")
                files[normal(file.filename)] = file
        return files

    def _place(self, target: Path, file: api_pb2.MountFile) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        copy(self.plane.file_store / file.sha256_hex, target)  # a link would share what it writes
        target.chmod(file.mode & 0o777 or 0o644)

    def _needed(self) -> list[Path]:
        """Directories of this machine without which a container would not run."""
        config = self.plane.config
        ours = [Path(__file__).parent, Path(config.runtime), Path(config.state), Path.home()]
        return [*ours, *self.machine.needs]

    def names(self, container: Container) -> list[str]:
        """Return the names of the container's own files and directories, without suffixes."""
        return sorted(
            {part.partition(".")[0] for f in self._files(container) for part in f.split("/")}
        )

    def environment(self, container: Container, facts: ImageFacts) -> dict[str, str]:
        """Merge this machine's environment, the image's, the secrets', and what a worker sets."""
        directory, function = container.directory, container.function
        ours = inherited()
        secrets: dict[str, str] = {}
        for secret_id in function.definition.secret_ids:
            secrets.update(self.plane.objects.secret(secret_id))
        interpreter = str(Path(self.plane.config.python).parent)
        code = self.code_directories(container)[: len(CODE_DIRECTORIES)]
        runtime = {
            "PATH": os.pathsep.join([interpreter, ours.get("PATH", os.defpath)]),
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
            GPUS: "" if gpus.hidden_at_first(container) else ",".join(container.gpus),
        }
        if container.kind != "cold":
            runtime["MODAL_ENABLE_SNAP_RESTORE"] = "1"
        merged = {**ours, **_threads(function), **facts.env, **secrets, **runtime}
        if broken := [name for name, value in merged.items() if "\0" in value]:
            raise ValueError(
                f"the value of {broken[0]} has a null byte, which no variable can hold"
            )
        return merged

    def environment_of_restore(self, container: Container) -> dict[str, str]:
        """Return what changes when a snapshot that goes on in its own process is taken."""
        if not gpus.hidden_at_first(container) or not container.gpus:
            return {}
        return {GPUS: ",".join(container.gpus)}

    def allot_gpus(self, container: Container) -> None:
        """Give *container* the GPUs that it asks for, as far as there are any."""
        plane, function = self.plane, container.function
        wanted, devices = gpus.count(function), plane.config.gpus
        live = (c for c in plane.containers.values() if c.is_alive and not c.holds_snapshot)
        container.gpus = gpus.allot(wanted, devices, live)
        if len(container.gpus) < wanted:
            name, asked = function.definition.function_name, gpus.requested(function)
            given = ", ".join(container.gpus) or "none"
            line = (
                f"modalkit: {name} asks for gpu={asked!r} and sees {given}: this plane has "
                f"{len(devices) or 'no'} GPUs for containers (gpus=[0, ...] names them)"
            )
            plane.say_once(container, line)

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

    def code_directories(self, container: Container) -> list[str]:
        """Return where the app's own Python code is, those of PYTHONPATH first."""
        place = self._staged(container) if self.machine.refusal else Path("/")
        on_path = [str(place / name) for name in CODE_DIRECTORIES]
        beside = {str(Path(file).parent) for file in self._files(container) if file.endswith(".py")}
        return on_path + sorted(d for d in beside if _top(d) not in CODE_DIRECTORIES)


def _threads(function: Function) -> dict[str, str]:
    """Return how many threads libraries are to use: as many as cores were asked for, if any."""
    cores = -(-function.definition.resources.milli_cpu // 1000)
    return dict.fromkeys(THREADS, str(cores)) if cores else {}


def inherited() -> dict[str, str]:
    """Return what containers get of this machine's environment."""
    return {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}


def _top(path: str) -> str:
    return path.split("/")[1]
