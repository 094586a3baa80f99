"""What is said about an image that is not built: to the import guard, in the logs, to the owner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modalkit.local._private import client_packages
from modalkit.local.core import IMAGE_BUILDER
from modalkit.local.image_commands import normal
from modalkit.local.image_packages import compare
from modalkit.local.reports import ImageInfo
from modalkit.local.staging import HOME

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.machine import Machine
    from modalkit.local.state import Container, Function

NAMED_STEPS = 3
"""How many of the build steps that were not run are named in the logs."""


class ImageReports:
    """Compares the images of a plane's apps with this machine."""

    def __init__(self, plane: Plane, machine: Machine) -> None:
        self._plane = plane
        self._machine = machine

    def guard(self, container: Container, code: list[str]) -> dict[str, Any] | None:
        """
        Return the import guard's arguments; None where the image cannot be read in full.

        Args:
            container: The container to be guarded.
            code: Directories of its app's own code.
        """
        facts = self._plane.image_facts(container.function.definition.image_id)
        config = self._plane.config
        if facts.unread and not config.provides:
            line = (
                "modalkit: imports are not checked, since this cannot be read: "
                f"{' | '.join(facts.unread)}; with provides=[...], which names the packages that "
                "it brings, they are"
            )
            self._plane.say_once(container, line)
            return None
        return {
            "packages": sorted({*facts.packages, *config.provides}),
            "client": client_packages(IMAGE_BUILDER),
            "strict": config.strict_image,
            "roots": code,
            "python": facts.python,
            "elsewhere": sorted(self._installed_by_others(container)),
        }

    def _installed_by_others(self, container: Container) -> set[str]:
        mine = container.function
        others = {
            function.definition.image_id
            for function in self._plane.functions.values()
            if function.app is mine.app and function.definition.image_id
        } - {mine.definition.image_id}
        return {package for other in others for package in self._plane.image_facts(other).packages}

    def say_differences(self, container: Container) -> None:
        """Say, once for each image, how this machine's Python differs from the image's."""
        facts = self._plane.image_facts(container.function.definition.image_id)
        other = [
            f"{package.name}{package.asked} ({package.here or 'missing'} here)"
            for package in compare(facts.packages, self._machine.distributions)
            if package.differs
        ]
        if facts.python and facts.python != self._machine.series:
            other.insert(0, f"Python {facts.python} ({self._machine.series} here)")
        if other:
            line = f"modalkit: the image has {', '.join(other)}; results may differ"
            self._plane.say_once(container, line)
        if facts.not_run:
            first = " | ".join(facts.not_run[:NAMED_STEPS])
            more = len(facts.not_run) - NAMED_STEPS
            rest = f" and {more} more; `modalkit local images` lists them" if more > 0 else ""
            self._plane.say_once(container, f"modalkit: not run here: {first}{rest}")

    def describe(self) -> list[ImageInfo]:
        """Describe the images of all functions that there are."""
        users: dict[str, list[Function]] = {}
        for function in self._plane.functions.values():
            definition = function.definition
            if function.base is None and definition.image_id and not definition.is_builder_function:
                users.setdefault(definition.image_id, []).append(function)
        return [self._describe(image_id, functions) for image_id, functions in users.items()]

    def _describe(self, image_id: str, functions: list[Function]) -> ImageInfo:
        facts, mounts = self._plane.image_facts(image_id), self._plane.mounts
        mounted = {mount for function in functions for mount in function.definition.mount_ids}
        added = {normal(file.filename) for mount in mounted for file in mounts[mount].files}
        return ImageInfo(
            id=image_id,
            functions=[f"{f.app.name}.{f.definition.function_name}" for f in functions],
            base=facts.base,
            python=facts.python,
            python_here=self._machine.version,
            packages=compare(facts.packages, self._machine.distributions),
            env=facts.env,
            workdir=facts.workdir or str(HOME),
            files=sorted({*facts.files, *added}),
            not_run=list(facts.not_run),
            unread=list(facts.unread),
        )
