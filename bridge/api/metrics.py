"""For the monitoring system: numbers, by token."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from bridge.access import Permission
from bridge.api.doors import House, Requires

router = APIRouter(dependencies=[Depends(Requires(Permission.METRICS_READ))])


@router.get("/metrics", name="metrics")
def metrics(rooms: House) -> Response:
    """Give the metrics in Prometheus' text form."""
    body, media_type = rooms.metrics()
    return Response(body, headers={"Content-Type": media_type})
