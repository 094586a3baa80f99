"""The autoscaler of a function, looked at and overridden while the app runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modal_proto import api_pb2

from modalkit.local.wire import known

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.scheduler import Scheduler
    from modalkit.local.state import Function


class ScalingService:
    """`Function.autoscaler`: an override lasts until the next deploy."""

    def __init__(self, plane: Plane, scheduler: Scheduler) -> None:
        self._plane = plane
        self._fleet = scheduler.fleet
        self._keep = plane.keep

    def _function(self, function_id: str) -> Function:
        return known(self._plane.functions, function_id, "function")

    async def FunctionGetSchedulingParams(
        self, request: api_pb2.FunctionGetSchedulingParamsRequest
    ) -> api_pb2.FunctionGetSchedulingParamsResponse:
        """Show the settings in force."""
        settings = self._function(request.function_id).definition.autoscaler_settings
        return api_pb2.FunctionGetSchedulingParamsResponse(
            autoscaler_configuration=api_pb2.AutoscalerConfiguration(settings=settings)
        )

    async def FunctionUpdateSchedulingParams(
        self, request: api_pb2.FunctionUpdateSchedulingParamsRequest
    ) -> api_pb2.FunctionUpdateSchedulingParamsResponse:
        """Override the named settings; launch what they ask for, let go what is too much."""
        function = self._function(request.function_id)
        settings = function.definition.autoscaler_settings
        for field, value in request.settings.ListFields():
            setattr(settings, field.name, value)
        self._keep.bound(function)
        self._fleet.scale(function)
        self._fleet.shrink(function)
        function.pulse.beat()
        return api_pb2.FunctionUpdateSchedulingParamsResponse(current_settings=settings)
