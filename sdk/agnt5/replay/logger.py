"""`ctx.logger` of a workflow: silent while history is replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agnt5.live_logger import LiveLogger, Told

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation


def workflow_logger(activation: Activation) -> LiveLogger:
    def listener() -> Told | None:
        return None if activation.listener is None else activation.listener.log

    info = activation.info
    fields = {"run_id": info.run_id, "workflow": info.workflow}
    return LiveLogger("agnt5.workflow", fields, listener, lambda: activation.replaying)
