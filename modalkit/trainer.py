"""
The base class of trainers: a Modal class whose start is fast and whose runs resume.

Its hooks for Modal are private; users override plain methods, for which Python's rules hold.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import modal

from modalkit import lifecycle, modal_objects
from modalkit._modal_introspect import is_parameter
from modalkit.errors import LifecycleError
from modalkit.policies import CheckpointPolicy, CommitPolicy

if TYPE_CHECKING:
    from modalkit.runs.run import Run


class SnapshotTrainer:
    """
    A trainer that starts from a memory snapshot and resumes its runs.

    Override any of `load`, `place` and `close`; they are plain methods, and `super()` works as
    everywhere. Call `self.run(...)` in a `@modal.method()`. Decorate the class with
    `@deployment.cls(app)`, or with `@app.cls(enable_memory_snapshot=True, ...)`.

    A subclass that Modal would run differently than it is written is a `LifecycleError` when it is
    defined; see `modalkit.lifecycle`.
    """

    seed: int = 0
    """What `load` and `place` are seeded with, and runs that name no seed of their own."""

    outputs: modal.Volume | None = None
    """The Volume that runs live on; None for that of the `Deployment`."""

    mount: str | None = None
    """The path where `outputs` is mounted; goes with it."""

    checkpoints: CheckpointPolicy | None = None
    """When runs are saved; None for the policy of the `Deployment`."""

    commits: CommitPolicy | None = None
    """When saves are made durable; None for the policy of the `Deployment`."""

    _modalkit_policy: str | None = None
    """What `Deployment.cls` sends by the environment, should that be replaced."""

    def load(self) -> None:
        """
        Load what every container needs, before the snapshot: imports, data, weights on the CPU.

        The result is in the snapshot, and so are the random numbers drawn here: `seed` fixes them.
        There is no GPU yet, and asking for one would hide it for good.
        """

    def place(self, device: str) -> None:
        """
        Move what `load` made to *device* and make what belongs to it, after every start.

        Args:
            device: "cuda" if torch sees a GPU, else "cpu".
        """

    def close(self) -> None:
        """Release what must not be left to the end of the process; Modal allows 30 s for it."""

    def run(
        self,
        run_id: str,
        /,
        *,
        config: Mapping[str, Any] | None = None,
        may_change: Collection[str] = (),
        seed: int | None = None,
        checkpoints: CheckpointPolicy | None = None,
        commits: CommitPolicy | None = None,
        **stateful: object,
    ) -> Run:
        """
        Begin the run *run_id*, or go on with it where its last attempt stopped.

        It is `modalkit.run` with this trainer's Volume, seed and policies; see there.

        Args:
            run_id: Name of the run; the same on every attempt.
            config: What the run was called with, as JSON; the next attempt must agree with it.
            may_change: Keys of *config* that may differ from the first attempt's.
            seed: Seed of a new run; None for the class attribute `seed`.
            checkpoints: When to save; None for the class attribute, then the `Deployment`'s.
            commits: When to make saves durable; None for the same.
            **stateful: The objects to save and restore, by the names they have in a checkpoint.

        Raises:
            LifecycleError: Neither the class nor its `Deployment` says where runs live.
        """
        from modalkit.runs.run import run

        volume, mount = self._modalkit_outputs()
        return run(
            run_id,
            volume=volume,
            mount=mount,
            config=config,
            may_change=may_change,
            seed=self.seed if seed is None else seed,
            checkpoints=self.checkpoints if checkpoints is None else checkpoints,
            commits=self.commits if commits is None else commits,
            **stateful,
        )

    @modal.enter(snap=True)
    def _modalkit_before_snapshot(self) -> None:
        from modalkit.deployment import container_policy
        from modalkit.runs.seeding import seed_everything

        self._modalkit_keep_policy()
        # Another modalkit in the container is found here, before loading takes its time.
        container_policy()
        # Only generators that are loaded can be seeded, and load() may be what imports them.
        for module in ("numpy", "torch"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        # In the snapshot, so that a restored container need not import it for its first run.
        importlib.import_module("modalkit.runs.run")
        seed_everything(self.seed)
        self.load()

    @modal.enter()
    def _modalkit_after_start(self) -> None:
        from modalkit.runs.seeding import seed_everything
        from modalkit.snapshots import renew

        renew.renew_os()
        # Again: a start brings an environment of its own to what was restored.
        self._modalkit_keep_policy()
        seed_everything(self.seed)
        self.place(_device())
        # What the trainer draws outside a run must differ between containers.
        renew.renew_generators()
        renew.record_renewal()

    def _modalkit_keep_policy(self) -> None:
        """Put the policies back where `with_options(env=..., secrets=...)` replaced them."""
        from modalkit.deployment import POLICY_VARIABLE

        if self._modalkit_policy is not None:
            os.environ.setdefault(POLICY_VARIABLE, self._modalkit_policy)

    @modal.exit()
    def _modalkit_close(self) -> None:
        self.close()

    def _modalkit_outputs(self) -> tuple[modal.Volume, str]:
        from modalkit.deployment import container_policy

        if self.outputs is not None and self.mount is not None:
            return self.outputs, self.mount
        outputs = container_policy().outputs
        self._modalkit_check_outputs(deployed=outputs is not None)
        assert outputs is not None
        return modal.Volume.from_name(outputs.volume_name), outputs.mount

    @classmethod
    def _modalkit_check_deployed(cls, *, with_outputs: bool) -> None:
        """Refuse at definition what the first `self.run(...)` would refuse in the container."""
        if lifecycle.reads_attribute(cls, "run", base=SnapshotTrainer):
            cls._modalkit_check_outputs(deployed=with_outputs)

    @classmethod
    def _modalkit_check_outputs(cls, *, deployed: bool) -> None:
        if (cls.outputs is None) != (cls.mount is None):
            raise LifecycleError(
                f"{cls.__name__} has outputs={cls.outputs!r} and mount={cls.mount!r}: they go "
                f"together. Set both, the Volume and the path where it is mounted, or neither."
            )
        if not deployed and cls.outputs is None:
            raise LifecycleError(
                f"{cls.__name__} calls self.run(...), but nothing says where runs live. Pass "
                f'outputs=("/outputs", volume) to Deployment.training(...), or set the class '
                f'attributes `outputs = volume` and `mount = "/outputs"` and mount it there. If '
                f"the Deployment does say it: with_options(env=...) and with_options(secrets=...) "
                f"drop it, unless the class is decorated with @deployment.cls(app)."
            )

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Check the class when it is defined; in a container it was checked already."""
        super().__init_subclass__(**keywords)
        if not modal_objects.in_container():
            lifecycle.check_class(cls, base=SnapshotTrainer, plain=_PLAIN, final=("run",))
            _check_attributes(cls)


_PLAIN = {"load": (), "place": ("device",), "close": ()}

_ATTRIBUTES = {
    "seed": (int, "an integer"),
    "mount": (str | None, "the path where outputs is mounted"),
    "checkpoints": (CheckpointPolicy | None, "a CheckpointPolicy"),
    "commits": (CommitPolicy | None, "a CommitPolicy"),
}


def _check_attributes(cls: type[SnapshotTrainer]) -> None:
    outputs = cls.outputs
    if outputs is not None and not (hasattr(outputs, "commit") and hasattr(outputs, "reload")):
        raise LifecycleError(
            f"{cls.__name__}.outputs = {outputs!r}: the attribute 'outputs' of a trainer is its "
            f'modal.Volume. Write `outputs = volume` and `mount = "/outputs"`.'
        )
    for name, (kind, description) in _ATTRIBUTES.items():
        value = getattr(cls, name)
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits and not is_parameter(value):
            raise LifecycleError(
                f"{cls.__name__}.{name} = {value!r}: the attribute {name!r} of a trainer is "
                f"{description}. Rename yours if it means something else."
            )
    if cls.mount is not None:
        modal_objects.check_mount(cls.mount)


def _device() -> str:
    # Imported before load() if the image has it; looked up, because a restored start is to be fast.
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
