"""
How a trainer is deployed: one value that gives the keywords for `@app.cls` and `@app.function`.

The laptop writes the policies into the container's environment as JSON (`MODALKIT_POLICY`);
`container_policy()` reads them there.
This is the only place where the two sides meet, and the place where their versions are compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import attrs

from modalkit import __version__, limits, modal_objects
from modalkit._modal_introspect import Role, many_at_once, user_class
from modalkit.errors import LifecycleError, PolicyError, VersionMismatchError
from modalkit.policies import CheckpointPolicy, CommitPolicy, RetryPolicy, within

if TYPE_CHECKING:
    import modal

C = TypeVar("C")

POLICY_VARIABLE: Final = "MODALKIT_POLICY"
"""The environment variable that carries the policies to the container."""

GRACE_S: Final = 30.0
"""Seconds between a preemption's SIGINT and its SIGKILL. Source: Modal's guide, "Preemption"."""

MAX_TIMEOUT_S: Final = 86_400
"""The longest an attempt may run, 24 h. Source: Modal's guide, "Timeouts"."""

_DEFAULT_RETRIES: Final = RetryPolicy()


@attrs.frozen
class Outputs:
    """Where runs live: a Volume, by name, and the path that it is mounted at."""

    mount: str
    volume_name: str


@attrs.frozen(kw_only=True)
class ContainerPolicy:
    """What the laptop told this container; a field is None where it said nothing."""

    retries: RetryPolicy | None = None
    checkpoints: CheckpointPolicy | None = None
    commits: CommitPolicy | None = None
    timeout_s: float | None = None
    """Seconds that one attempt may run."""
    grace_s: float = GRACE_S
    """Seconds between the signal of a preemption and the kill."""
    outputs: Outputs | None = None
    modalkit: str = __version__
    """The version of modalkit on the laptop."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of `MODALKIT_POLICY`, which `container_policy` reads."""
        outputs = self.outputs and {
            "mount": self.outputs.mount,
            "volume": self.outputs.volume_name,
        }
        return {
            "modalkit": self.modalkit,
            "retries": self.retries and self.retries.to_json(),
            "checkpoints": self.checkpoints and self.checkpoints.to_json(),
            "commits": self.commits and self.commits.to_json(),
            "timeout_s": self.timeout_s,
            "grace_s": self.grace_s,
            "outputs": outputs,
        }


def container_policy(environ: Mapping[str, str] = os.environ) -> ContainerPolicy:
    """
    Return the policies that the laptop sent, or the defaults if it sent none.

    Raises:
        VersionMismatchError: The laptop's modalkit is not this one.
        PolicyError: `MODALKIT_POLICY` is not what a `Deployment` writes.
    """
    text = environ.get(POLICY_VARIABLE)
    if text is None:
        return ContainerPolicy()
    try:
        data = json.loads(text)
        _check_version(data["modalkit"])
        return _from_json(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(
            f"{POLICY_VARIABLE}={text!r} is not what Deployment.options() writes ({error!r}). "
            f"Leave the variable to modalkit: set it neither in env= nor in the image."
        ) from error


def _check_version(laptop: str) -> None:
    if laptop != __version__:
        raise VersionMismatchError(
            f"modalkit in this container is {__version__}, the app was defined with {laptop}. "
            f"Build the image with recipe.to_modal() or modalkit.add_to(image), which bring the "
            f"laptop's modalkit along, install no other one in it, and deploy again."
        )


def _from_json(data: Mapping[str, Any]) -> ContainerPolicy:
    outputs = data["outputs"]
    return ContainerPolicy(
        retries=data["retries"] and RetryPolicy.from_json(data["retries"]),
        checkpoints=data["checkpoints"] and CheckpointPolicy.from_json(data["checkpoints"]),
        commits=data["commits"] and CommitPolicy.from_json(data["commits"]),
        timeout_s=data["timeout_s"],
        grace_s=data["grace_s"],
        outputs=outputs and Outputs(outputs["mount"], outputs["volume"]),
        modalkit=data["modalkit"],
    )


def _whole_seconds(value: Any) -> Any:
    """Return a float such as 3600.0 as the integer that Modal wants, the rest as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _canonical_outputs(value: Any) -> Any:
    """Return the pair with its mount point as Modal writes it; leave the rest to the validator."""
    match value:
        case (str() as mount, volume):
            return (modal_objects.canonical_mount(mount), volume)
    return value


def _retry_policy(value: RetryPolicy | modal.Retries | int | None) -> RetryPolicy | None:
    """Return what Modal will do for *value*, any argument that it takes as `retries=`."""
    if value is None or isinstance(value, RetryPolicy):
        return value
    return RetryPolicy(**modal_objects.retry_numbers(value))


def _check_outputs(_owner: object, _attribute: attrs.Attribute[Any], value: Any) -> None:
    """Refuse outputs that Modal would not mount, or that the container could not open by name."""
    if value is None or modal_objects.in_container():
        return
    match value:
        case (str() as mount, volume):
            modal_objects.check_mount(mount)
            modal_objects.check_reopenable(volume)
        case _:
            raise PolicyError(
                f"Deployment(outputs={value!r}): outputs is a mount point and a Volume. "
                f'Pass a pair, outputs=("/outputs", volume).'
            )


def _policy_of(kind: type) -> Callable[[object, attrs.Attribute[Any], object], None]:
    def check(_owner: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not (value is None or isinstance(value, kind)):
            raise PolicyError(
                f"Deployment({attribute.name}={value!r}): pass a {kind.__name__}, or None for "
                f"the defaults."
            )

    return check


_NOT_ALONE: Final = {
    Role.CLUSTERED: (
        "a memory snapshot would hold one container's rank and addresses, for all of the cluster. "
        'Train on the GPUs of one container, gpu="H100:8", or use @app.cls without modalkit.'
    ),
    Role.CONCURRENT: (
        "its inputs run beside the main thread, where no preemption can be noticed and saved for. "
        "Leave it out; each call gets a container of its own."
    ),
}


def _check_alone(decorated: object) -> None:
    """Refuse decorators by which several inputs or containers would train as one."""
    if role := many_at_once(decorated):
        name = getattr(user_class(decorated), "__name__", decorated)
        raise LifecycleError(f"{name} is decorated with @{role.value}: {_NOT_ALONE[role]}")


_A_DAY: Final = (
    "Modal ends an attempt after 24 h at most; the next attempt goes on where it stopped."
)


@attrs.frozen(kw_only=True)
class Deployment:
    """
    How a trainer or a training function is deployed.

    Made by `Deployment.training(...)`.
    `@deployment.cls(app, gpu="T4")` decorates a class,
    `@app.function(**deployment.options(gpu="T4"))` a function.

    Raises:
        PolicyError: A value is outside Modal's limits.
    """

    outputs: tuple[str, modal.Volume] | None = attrs.field(
        converter=_canonical_outputs, validator=_check_outputs
    )
    retries: RetryPolicy | None = attrs.field(converter=_retry_policy)
    checkpoints: CheckpointPolicy | None = attrs.field(validator=_policy_of(CheckpointPolicy))
    commits: CommitPolicy | None = attrs.field(validator=_policy_of(CommitPolicy))
    timeout_s: int = attrs.field(
        converter=_whole_seconds, validator=within(1, MAX_TIMEOUT_S, _A_DAY, whole=True)
    )
    startup_timeout_s: int | None = attrs.field(
        converter=_whole_seconds,
        validator=within(
            1,
            MAX_TIMEOUT_S,
            "Pass None to count the start-up as timeout_s.",
            whole=True,
            optional=True,
        ),
    )

    @classmethod
    def training(
        cls,
        *,
        outputs: tuple[str, modal.Volume] | None = None,
        retries: RetryPolicy | modal.Retries | int | None = _DEFAULT_RETRIES,
        checkpoints: CheckpointPolicy | None = None,
        commits: CommitPolicy | None = None,
        timeout_s: int = MAX_TIMEOUT_S,
        startup_timeout_s: int | None = 1800,
    ) -> Deployment:
        """
        Return the deployment of a training.

        One input per container, retried when it fails, started from a memory snapshot.

        Args:
            outputs: Mount point and Volume of the runs. Without it the class says it by its
                attributes `outputs` and `mount`, or the function passes them to `modalkit.run`.
                The container opens the Volume by its name.
            retries: When Modal starts a failed input again; None for never. The default is
                `RetryPolicy()`.
            checkpoints: When a run is saved; None for the defaults of `CheckpointPolicy`.
            commits: When saved checkpoints are made durable; None for the defaults of
                `CommitPolicy`.
            timeout_s: Seconds that one attempt may run, 1 to 86400. The default is the most that
                Modal allows: a training that is cut short has to start a container again.
            startup_timeout_s: Seconds until the class is loaded, 1 to 86400. The default of 30 min
                leaves time to read large weights; None counts the start-up as *timeout_s* does.

        Raises:
            PolicyError: A value is outside Modal's limits.

        Source: Modal's guides "Timeouts" and "Preemption", and its long-training example.
        """
        return cls(
            outputs=outputs,
            retries=retries,
            checkpoints=checkpoints,
            commits=commits,
            timeout_s=timeout_s,
            startup_timeout_s=startup_timeout_s,
        )

    def options(self, **yours: Any) -> dict[str, Any]:
        """
        Return the keyword arguments for `@app.cls` or `@app.function`, merged with *yours*.

        Yours override; `env` and `volumes` are merged key by key.
        The policies, as Modal will apply them after your overrides, travel in
        `env["MODALKIT_POLICY"]`. There is a key only where there is a value: no `volumes` unless
        somebody named one.

        Args:
            **yours: Any arguments of `@app.cls` or `@app.function`, such as `gpu` or `secrets`;
                `retries` may be a `RetryPolicy` too.

        Raises:
            PolicyError: An argument that Modal does not know, a value outside its limits, another
                Volume at the mount of the outputs, or a `MODALKIT_POLICY` of your own.
        """
        if not modal_objects.in_container():
            self._check(yours)
        effective = attrs.evolve(
            self,
            retries=yours.pop("retries", self.retries),
            timeout_s=yours.pop("timeout", self.timeout_s),
            startup_timeout_s=yours.pop("startup_timeout", self.startup_timeout_s),
        )
        env = {
            **(yours.pop("env", None) or {}),
            POLICY_VARIABLE: json.dumps(effective.for_container().to_json()),
        }
        keywords = {
            "enable_memory_snapshot": True,
            "env": env,
            "retries": effective.retries and effective.retries.to_modal(),
            "single_use_containers": True,
            "startup_timeout": effective.startup_timeout_s,
            "timeout": effective.timeout_s,
            "volumes": self._volumes(yours.pop("volumes", None) or {}),
        }
        return {key: value for key, value in keywords.items() if value} | yours

    def cls(self, app: modal.App, **yours: Any) -> Callable[[C], C]:
        """
        Decorate a class: the short form of `@app.cls(**deployment.options(**yours))`.

        Args:
            app: The app that the class belongs to.
            **yours: Arguments of `@app.cls`, as in `options`.

        Raises:
            PolicyError: As `options` does.
            LifecycleError: The class calls `self.run(...)`, and neither it nor the deployment says
                where runs live; or it is under `@modal.clustered` or `@modal.concurrent`.
        """
        keywords = self.options(**yours)

        def decorate(user_cls: C) -> C:
            plain: Any = user_class(user_cls)
            is_trainer = hasattr(plain, "_modalkit_policy")
            if is_trainer:
                plain._modalkit_policy = keywords["env"][POLICY_VARIABLE]  # noqa: SLF001 - ours
            if not modal_objects.in_container():
                _check_alone(user_cls)
                if is_trainer:
                    plain._modalkit_check_deployed(with_outputs=self.outputs is not None)  # noqa: SLF001
            return cast("C", app.cls(**keywords)(user_cls))  # type: ignore[arg-type]

        return decorate

    def for_container(self) -> ContainerPolicy:
        """Return what a container of this deployment is told."""
        return ContainerPolicy(
            retries=self.retries,
            checkpoints=self.checkpoints,
            commits=self.commits,
            timeout_s=self.timeout_s,
            outputs=self.outputs and Outputs(self.outputs[0], str(self.outputs[1].name)),
        )

    def _check(self, yours: Mapping[str, Any]) -> None:
        modal_objects.check_keywords(yours)
        limits.check_options(yours)
        if POLICY_VARIABLE in (yours.get("env") or {}):
            raise PolicyError(
                f"env={{{POLICY_VARIABLE!r}: ...}}: modalkit writes this variable itself. "
                f"Leave it out, and pass your policies to Deployment.training(...)."
            )
        if yours.get("nonpreemptible") and yours.get("gpu"):
            raise PolicyError(
                f"nonpreemptible=True with gpu={yours['gpu']!r}: Modal preempts every GPU "
                f"container. Leave nonpreemptible out; a run survives its preemptions."
            )
        if self.outputs is not None:
            mount, volume = self.outputs
            for path, theirs in (yours.get("volumes") or {}).items():
                if modal_objects.canonical_mount(path) == mount:
                    modal_objects.check_same_volume(mount, volume, theirs)

    def _volumes(self, yours: Mapping[str, Any]) -> dict[str, Any]:
        ours = {} if self.outputs is None else {self.outputs[0]: self.outputs[1]}
        return {**ours, **{modal_objects.canonical_mount(path): v for path, v in yours.items()}}
