"""Functions and classes: how they are defined, looked up and varied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modalkit.local import features
from modalkit.local.layout import class_metadata
from modalkit.local.state import App, Function, new_id
from modalkit.local.volume_service import check_mounts
from modalkit.local.wire import known, not_found

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.scheduler import Scheduler

OF_ANOTHER_PLANE: Final = (
    "the local plane has no {what}: it was deleted, or this process made it for another plane, and "
    "modal keeps it as long as the process lives. Use plane.run or plane.deploy, which start a "
    "process each time, or one plane for the whole process (modalkit_plane_scope = session)"
)


class FunctionService:
    """Definitions of functions and classes."""

    def __init__(self, plane: Plane, scheduler: Scheduler) -> None:
        self._plane = plane
        self._scheduler = scheduler

    def _function(self, function_id: str) -> Function:
        return known(self._plane.functions, function_id, "function")

    def _existing_or_new(self, existing_id: str, app_id: str) -> Function:
        if existing_id in self._plane.functions:
            return self._plane.functions[existing_id]
        app = known(self._plane.apps, app_id, "app")
        function = _undefined(new_id("fu"), app)
        self._plane.functions[function.id] = function
        return function

    async def FunctionPrecreate(
        self, request: api_pb2.FunctionPrecreateRequest
    ) -> api_pb2.FunctionPrecreateResponse:
        function = self._existing_or_new(request.existing_function_id, request.app_id)
        described = _undefined(function.id, function.app)
        _describe(described, request)
        return api_pb2.FunctionPrecreateResponse(
            function_id=function.id, handle_metadata=described.metadata
        )

    async def FunctionCreate(
        self, request: api_pb2.FunctionCreateRequest
    ) -> api_pb2.FunctionCreateResponse:
        function = self._existing_or_new(request.existing_function_id, request.app_id)
        definition, gpu_choices = request.function, []
        if not request.HasField("function"):  # a list of GPUs: one ranked definition each
            ranked = request.function_data.ranked_functions
            definition = ranked[0].function
            gpu_choices = [r.function.resources.gpu_config for r in ranked]
        if problem := features.refusal(definition):
            raise GRPCError(
                Status.UNIMPLEMENTED,
                f"{definition.function_name} cannot run on the local plane: {problem}",
            )
        check_mounts(definition.volume_mounts)
        self._check_objects(definition)
        function.app.warnings[function.id] = features.warnings(definition)
        coming = _undefined(function.id, function.app)
        coming.definition.CopyFrom(definition)
        coming.gpu_choices = gpu_choices
        _describe(coming, definition)
        coming.metadata.class_parameter_info.CopyFrom(definition.class_parameter_info)
        function.coming = coming
        if not function.version:  # it has no containers; those that it calls may need it
            redefine(self._plane, function)
        return api_pb2.FunctionCreateResponse(
            function_id=function.id,
            function=coming.definition,
            handle_metadata=coming.metadata,
            function_data=_function_data(coming),
        )

    def _check_objects(self, definition: api_pb2.Function | api_pb2.FunctionOptions) -> None:
        """Refuse ids of another plane: a client asks once for a Mount or Volume, and keeps it."""
        for mount in definition.volume_mounts:
            try:
                self._plane.volumes.by_id(mount.volume_id)
            except KeyError:
                raise _of_another_plane(f"Volume {mount.volume_id}") from None
        for mount_id in definition.mount_ids:
            if mount_id not in self._plane.mounts:
                raise _of_another_plane(f"Mount {mount_id}")

    async def FunctionGet(self, request: api_pb2.FunctionGetRequest) -> api_pb2.FunctionGetResponse:
        """Find a function of a deployed app, or of one version of it."""
        app = self._deployed(request.app_name, request.object_tag)
        version = request.app_version or len(app.deployments)
        if version == len(app.deployments):
            function = self._function(_tagged(app, app.function_ids, request.object_tag))
        else:
            function = self._pinned(app, version, request.object_tag)
        return api_pb2.FunctionGetResponse(
            function_id=function.id,
            handle_metadata=function.metadata,
            function=_function_data(function),
        )

    def _pinned(self, app: App, version: int, tag: str) -> Function:
        """Return the function that goes on running what an older version of *app* has."""
        if not 1 <= version <= len(app.deployments):
            raise not_found(f"app {app.name!r} has the versions 1 to {len(app.deployments)}")
        deployment = app.deployments[version - 1]
        _tagged(app, deployment.function_ids, tag)
        if tag not in deployment.pinned:
            then = deployment.definitions[tag]
            function = Function(
                new_id("fu"),
                app,
                then.definition,
                then.metadata,
                gpu_choices=then.gpu_choices,
                pinned_to=deployment,
            )
            self._plane.functions[function.id] = function
            deployment.pinned[tag] = function.id
            self._plane.keep.bound(function)
        return self._plane.functions[deployment.pinned[tag]]

    async def FunctionGetById(
        self, request: api_pb2.FunctionGetByIdRequest
    ) -> api_pb2.FunctionGetByIdResponse:
        function = self._function(request.function_id)
        return api_pb2.FunctionGetByIdResponse(
            function=_function_data(function), handle_metadata=function.metadata
        )

    def _deployed(self, app_name: str, tag: str) -> App:
        app = self._plane.apps.get(self._plane.deployed.get(app_name, ""))
        if app is None or app.is_stopping:
            raise not_found(
                f"no deployed app {app_name!r} with {tag!r}; "
                f"deployed here: {sorted(self._plane.deployed)}"
            )
        return app

    async def ClassCreate(self, request: api_pb2.ClassCreateRequest) -> api_pb2.ClassCreateResponse:
        class_id = request.existing_class_id or new_id("cs")
        self._plane.classes.setdefault(class_id, "")
        return api_pb2.ClassCreateResponse(
            class_id=class_id, handle_metadata=api_pb2.ClassHandleMetadata()
        )

    async def ClassGet(self, request: api_pb2.ClassGetRequest) -> api_pb2.ClassGetResponse:
        app = self._deployed(request.app_name, request.object_tag)
        class_id = _tagged(app, app.class_ids, request.object_tag)
        return api_pb2.ClassGetResponse(
            class_id=class_id, handle_metadata=class_metadata(self._plane, class_id)
        )

    async def FunctionBindParams(
        self, request: api_pb2.FunctionBindParamsRequest
    ) -> api_pb2.FunctionBindParamsResponse:
        base = self._function(request.function_id)
        if request.function_options.cloud_bucket_mounts:
            raise GRPCError(Status.UNIMPLEMENTED, "the local plane does not model CloudBucketMount")
        check_mounts(request.function_options.volume_mounts)
        self._check_objects(request.function_options)
        key = (
            base.id,
            request.serialized_params,
            request.function_options.SerializeToString(deterministic=True),
        )
        if key not in self._plane.variants:
            variant = Function(
                new_id("fu"),
                base.app,
                api_pb2.Function(),
                api_pb2.FunctionHandleMetadata(),
                base=base,
                parameters=request.serialized_params,
                options=request.function_options,
            )
            _derive(variant)
            self._plane.functions[variant.id] = variant
            self._plane.variants[key] = variant.id
            self._plane.keep.bound(variant)
        variant = self._plane.functions[self._plane.variants[key]]
        return api_pb2.FunctionBindParamsResponse(
            bound_function_id=variant.id, handle_metadata=variant.metadata
        )


def _undefined(function_id: str, app: App) -> Function:
    return Function(function_id, app, api_pb2.Function(), api_pb2.FunctionHandleMetadata())


def redefine(plane: Plane, function: Function) -> list[Function]:
    """
    Let *function*, and its variants, be what was created last: a deploy is all or nothing.

    Returns:
        Those of them that are new, whose containers run old code; they share no message with what
        they were before.
    """
    coming, function.coming = function.coming, None
    if coming is None:
        return []
    function.definition, function.metadata = coming.definition, coming.metadata
    function.gpu_choices = coming.gpu_choices
    function.version += 1
    variants = [f for f in plane.functions.values() if f.base is function]
    for variant in variants:
        _derive(variant)
    return [function, *variants]


def _of_another_plane(what: str) -> GRPCError:
    return GRPCError(Status.INVALID_ARGUMENT, OF_ANOTHER_PLANE.format(what=what))


def _tagged(app: App, ids: Mapping[str, str], tag: str) -> str:
    if tag in ids:
        return ids[tag]
    kind = "is a class: use modal.Cls.from_name" if f"{tag}.*" in ids else "is not there"
    raise not_found(f"{tag!r} of app {app.name!r} {kind}; it has {sorted(ids)}")


def _describe(function: Function, source: Any) -> None:
    """Fill the handle metadata of *function* from a definition, or from what precedes it."""
    metadata = function.metadata
    metadata.function_name, metadata.function_type = source.function_name, source.function_type
    metadata.definition_id, metadata.app_id = f"de-{function.id}", function.app.id
    metadata.function_schema.CopyFrom(source.function_schema)
    _copy_formats(metadata, source)
    for name, method in source.method_definitions.items():
        handle = metadata.method_handle_metadata[name]
        handle.function_name, handle.function_type = method.function_name, method.function_type
        handle.is_method, handle.use_method_name, handle.definition_id = (
            True,
            name,
            metadata.definition_id,
        )
        handle.function_schema.CopyFrom(method.function_schema)
        _copy_formats(handle, method)


def _copy_formats(target: Any, source: Any) -> None:
    for field in ("supported_input_formats", "supported_output_formats"):
        target.ClearField(field)
        getattr(target, field).extend(getattr(source, field))


def _function_data(function: Function) -> api_pb2.FunctionData:
    """Return the definition as lookups answer it: common fields and one ranked function."""
    definition = function.definition
    ranked = api_pb2.FunctionData.RankedFunction(rank=0, function=definition)
    data = api_pb2.FunctionData(ranked_functions=[ranked])
    shared = set(definition.DESCRIPTOR.fields_by_name) & set(data.DESCRIPTOR.fields_by_name)
    for field, value in definition.ListFields():
        if field.name not in shared or field.name == "method_definitions" or field.is_repeated:
            continue
        if field.message_type:
            getattr(data, field.name).CopyFrom(value)
        else:
            setattr(data, field.name, value)
    for name, method in definition.method_definitions.items():
        data.method_definitions[name].CopyFrom(method)
    return data


def _derive(variant: Function) -> None:
    """Give *variant* its base's definition with its own options: a redeploy changes both."""
    assert variant.base is not None
    options = variant.options
    variant.definition, variant.metadata = definition, metadata = (
        api_pb2.Function(),
        api_pb2.FunctionHandleMetadata(),
    )
    definition.CopyFrom(variant.base.definition)
    metadata.CopyFrom(variant.base.metadata)
    if options.replace_secret_ids or options.secret_ids:
        del definition.secret_ids[:]
        definition.secret_ids.extend(options.secret_ids)
    if options.replace_volume_mounts:
        del definition.volume_mounts[:]
        definition.volume_mounts.extend(options.volume_mounts)
    if options.HasField("retry_policy"):
        definition.retry_policy.CopyFrom(options.retry_policy)
    if options.HasField("resources"):
        definition.resources.MergeFrom(options.resources)
    has_own_gpu = options.resources.gpu_config.gpu_type
    variant.gpu_choices = [] if has_own_gpu else list(variant.base.gpu_choices)
    if options.HasField("timeout_secs"):
        definition.timeout_secs = options.timeout_secs
    settings = definition.autoscaler_settings
    settings.min_containers = 0  # as on Modal: those of the base do not apply to its variants
    for option, setting in (
        ("concurrency_limit", "max_containers"),
        ("buffer_containers", "buffer_containers"),
        ("task_idle_timeout_secs", "scaledown_window"),
    ):
        if options.HasField(option):
            setattr(settings, setting, getattr(options, option))
    for field in (
        "max_concurrent_inputs",
        "target_concurrent_inputs",
        "batch_max_size",
        "batch_linger_ms",
    ):
        if options.HasField(field):
            setattr(definition, field, getattr(options, field))
