"""Durable workflows in plain async Python.

from agnt5 import FunctionContext, WorkflowContext, function, workflow

@function
async def charge(ctx: FunctionContext, order_id: str, amount: float) -> dict: ...

@workflow
async def order(ctx: WorkflowContext, order_id: str, amount: float) -> dict:
    return await ctx.step(charge, order_id, amount)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agnt5.batch import BatchItemResult, BatchResult, BatchStats
from agnt5.context import WorkflowContext
from agnt5.errors import (
    Agnt5Error,
    ChildError,
    DefinitionError,
    EncodeError,
    FatalError,
    InputError,
    NonDeterminismError,
    RunError,
    StepError,
    StepTimeout,
)
from agnt5.function import Function, function
from agnt5.functioncontext import FunctionContext
from agnt5.policies import BackoffPolicy, RetryPolicy
from agnt5.workflow import Workflow, workflow

if TYPE_CHECKING:
    from agnt5.client import AsyncClient, Client
    from agnt5.client.models import Run

# Brought in when first asked for: a workflow's module need not pay for an HTTP client.
_ELSEWHERE = {"AsyncClient": "agnt5.client", "Client": "agnt5.client", "Run": "agnt5.client.models"}

__all__ = [
    "Agnt5Error",
    "AsyncClient",
    "BackoffPolicy",
    "BatchItemResult",
    "BatchResult",
    "BatchStats",
    "ChildError",
    "Client",
    "DefinitionError",
    "EncodeError",
    "FatalError",
    "Function",
    "FunctionContext",
    "InputError",
    "NonDeterminismError",
    "RetryPolicy",
    "Run",
    "RunError",
    "StepError",
    "StepTimeout",
    "Workflow",
    "WorkflowContext",
    "function",
    "workflow",
]


def __getattr__(name: str) -> Any:
    module = _ELSEWHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'agnt5' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
