"""Running one attempt of a function: bytes in, bytes out, its own exception when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from concurrent.futures import Executor
from typing import Any

from agnt5.errors import EncodeError, StepTimeout
from agnt5.function import Function
from agnt5.functioncontext import FunctionContext
from agnt5.policies import StepOptions
from agnt5.threads import run_in_thread


async def execute(
    function: Function[Any],
    input: bytes,
    ctx: FunctionContext,
    options: StepOptions | None = None,
    threads: Executor | None = None,
) -> bytes:
    """Run `function` once with its encoded input and give its result as its return annotation writes it.

    Async functions run on this loop, plain ones in `threads` (a pool of this process by default). Raises whatever the
    function raises, InputError for input that its annotations refuse, EncodeError for a result that cannot be kept,
    and StepTimeout after `timeout_ms`."""
    args, kwargs = function.decode_input(input)
    encode = function.codec.encode  # before anything is done: the return annotation may be one that cannot be used
    if function.takes_ctx:
        args.insert(0, ctx)
    timeout_ms = (function.policy if options is None else options).timeout_ms
    fn = function.fn
    if timeout_ms is None and function.is_async:
        value = await fn(*args, **kwargs)
    else:
        call = fn(*args, **kwargs) if function.is_async else run_in_thread(fn, args, kwargs, threads, ctx)
        value = await bounded(call, timeout_ms, function.name, ctx)
    try:
        return encode(value)
    except EncodeError as error:
        raise EncodeError(f"the result of function {function.name!r} cannot be kept: {error}") from None


async def bounded(call: Awaitable[Any], timeout_ms: int | None, name: str, ctx: FunctionContext) -> Any:
    """Await `call` for at most `timeout_ms`; StepTimeout after that, when it has been cancelled."""
    if timeout_ms is None:
        return await call
    try:
        async with asyncio.timeout(timeout_ms / 1000) as scope:
            return await call
    except TimeoutError:
        if not scope.expired():
            raise  # the function's own
        ctx.cancelled = True
        raise StepTimeout(f"{name!r} ran longer than its timeout_ms={timeout_ms}") from None
