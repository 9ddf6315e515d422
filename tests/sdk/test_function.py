from __future__ import annotations

import asyncio
import functools
import re
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agnt5 import (
    DefinitionError,
    EncodeError,
    FunctionContext,
    InputError,
    StepTimeout,
    WorkflowContext,
    function,
    registry,
    workflow,
)
from agnt5.execute import execute
from agnt5.function import current_activation, plain_function
from agnt5.policies import StepOptions
from agnt5.replay.steps import LocalAwaitable, LocalCall
from agnt5.testing import TestEnvironment
from agnt5.threads import StepThreads


@dataclass
class Order:
    id: str
    total: float = 0.0


def ctx(**fields: Any) -> FunctionContext:
    return FunctionContext(name="test", run_id="r1", **fields)


class RecordingContext:
    """A workflow's context, as far as functions need one."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]] = []

    def _called(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.asked.append(("step", fn, args, kwargs))
        return _value("stepped")

    def _in_place(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.asked.append(("in place", fn, args, kwargs))
        return _value("in place")


async def _value(value: Any) -> Any:
    return value


# ------------------------------------------------------------------ calling


async def test_with_a_workflows_ctx_a_function_runs_in_place() -> None:
    @function
    async def with_ctx(ctx: FunctionContext, x: int) -> Any:
        return x

    @function
    async def without_ctx(x: int) -> Any:
        return x

    running: Any = RecordingContext()
    assert await with_ctx(running, 1) == "in place"
    assert await without_ctx(running, x=2) == "in place"
    assert await with_ctx(ctx=running, x=3) == "in place"
    assert running.asked == [
        ("in place", with_ctx, (1,), {}),
        ("in place", without_ctx, (), {"x": 2}),
        ("in place", with_ctx, (), {"x": 3}),
    ]


async def test_without_ctx_in_a_workflow_a_function_is_a_step() -> None:
    @function
    async def fetch(ctx: FunctionContext, report: str, key: str = "") -> str:
        return report

    running: Any = RecordingContext()
    token = current_activation.set(running)
    try:
        assert await fetch("r", key="k") == "stepped"
        assert running.asked == [("step", fetch, ("r",), {"key": "k"})]
    finally:
        current_activation.reset(token)


@function
async def tenfold(ctx: FunctionContext, n: int, key: str = "") -> str:
    return f"{10 * n}{key}"


async def test_a_function_called_in_a_workflow_is_a_step_however_it_is_handed_on() -> None:
    registry.add_function(tenfold)

    @workflow
    async def every_way(ctx: WorkflowContext) -> list[Any]:
        early = tenfold(1)
        task = asyncio.create_task(tenfold(2, key="k"))
        async with asyncio.TaskGroup() as group:
            member = group.create_task(tenfold(3))
        named = await ctx.gather(a=tenfold(4))
        return [
            *await asyncio.gather(early, tenfold(5)),
            await task,
            member.result(),
            named,
            *await ctx.parallel(tenfold(6)),
            await asyncio.wait_for(tenfold(7), 5),
            await ctx.step(tenfold(8)),
            await ctx.step("named", tenfold(9)),
            await early,
        ]

    async with TestEnvironment() as env:
        handle = await env.start(every_way)
        assert await handle.result() == ["10", "50", "20k", "30", {"a": "40"}, "60", "70", "80", "90", "10"]
        names = [event.name for event in handle.history().events if event.kind == "step"]
        assert sorted(names) == ["named"] + ["tenfold"] * 8
        env.replay(handle)


async def test_a_function_called_and_never_awaited_fails_the_run_naming_it() -> None:
    registry.add_function(tenfold)

    @workflow
    async def forgetful(ctx: WorkflowContext) -> None:
        tenfold(1)  # type: ignore[unused-coroutine]

    async with TestEnvironment() as env:
        run = await (await env.start(forgetful)).wait()
        assert run.status == "failed"
        assert run.error is not None
        assert re.search(r"never awaited: .*tenfold.*test_function.py:\d+", run.error.message)


@pytest.mark.parametrize("stand_in", [None, Mock(), SimpleNamespace(run_id="r"), ctx()], ids=repr)
async def test_outside_a_workflow_a_function_is_just_itself_with_or_without_a_ctx(stand_in: Any) -> None:
    @function
    async def greet(ctx: FunctionContext, name: str) -> str:
        return f"{name} {ctx is stand_in}"

    assert await greet(stand_in, "Ada") == "Ada True"
    assert await greet("Ada") == "Ada False"
    assert await greet(name="Ada") == "Ada False"
    assert await greet(ctx=stand_in, name="Ada") == "Ada True"


async def test_an_optional_first_argument_is_not_taken_for_a_ctx() -> None:
    @function
    async def page(ctx: FunctionContext, number: Any = 0) -> Any:
        return number

    assert [await page(7), await page({"n": 1}), await page(None), await page(Order("o"))] == [
        7,
        {"n": 1},
        None,
        Order("o"),
    ]
    assert await page(Mock()) == 0
    assert await page(Mock(), 7) == 7


async def test_a_plain_function_runs_in_a_thread_with_the_callers_context_variables() -> None:
    request: ContextVar[str] = ContextVar("request")

    @function
    def where() -> tuple[str, str]:
        return threading.current_thread().name, request.get()

    request.set("r-7")
    thread, seen = await where()
    assert thread != threading.current_thread().name
    assert seen == "r-7"


async def test_a_function_may_call_another_with_its_own_ctx() -> None:
    @function
    async def inner(ctx: FunctionContext, x: int) -> str:
        return f"{ctx.idempotency_key} {x}"

    @function
    async def outer(ctx: FunctionContext, x: int) -> str:
        return await inner(ctx, x)

    data = await execute(outer, outer.encode_input((3,), {}), ctx(idempotency_key="r1/0"))
    assert outer.decode_result(data) == "r1/0 3"


# ------------------------------------------------------------------ input


@given(
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.sampled_from(["a", "b", "c", "d", "z"]), st.integers(), max_size=4),
)
def test_a_call_is_accepted_exactly_when_python_would_accept_it(args: list[int], kwargs: dict[str, int]) -> None:
    def one(a: int, b: int, c: int = 3) -> None: ...
    def two(a: int, *more: int, d: int) -> None: ...
    def three(*, d: int = 1, **rest: int) -> None: ...
    def four(a: int, /, b: int = 2) -> None: ...

    for fn in (one, two, three, four):
        step = plain_function(fn)
        try:
            fn(*args, **kwargs)
        except TypeError:
            with pytest.raises(TypeError, match=f"function '{fn.__name__}'"):
                step.encode_input(tuple(args), kwargs)
        else:
            assert step.decode_input(step.encode_input(tuple(args), kwargs)) == (args, kwargs)


async def test_arguments_arrive_as_their_annotations_say() -> None:
    @function
    async def ship(
        ctx: FunctionContext, order: Order, when: datetime, *tags: bytes, extra: set[int] | None = None, **more: Order
    ) -> list[str]:
        return [repr(part) for part in (order, when, tags, extra, more)]

    order, when = Order("o1", 2.5), datetime(2026, 1, 2, 3, 4, 5)
    data = ship.encode_input((order, when, b"\xff", b""), {"extra": {2, 1}, "gift": order})
    got = ship.decode_result(await execute(ship, data, ctx()))
    assert got == [repr(part) for part in (order, when, (b"\xff", b""), {1, 2}, {"gift": order})]


async def test_an_argument_that_does_not_fit_is_named() -> None:
    @function
    async def ship(order: Order, count: int) -> None: ...

    with pytest.raises(InputError, match="'ship'") as refused:
        await execute(ship, ship.encode_input((), {"order": {"total": 1}, "count": 1}), ctx())
    assert refused.value.fields == {"order": "id: Field required"}
    with pytest.raises(InputError) as refused:
        await execute(ship, ship.encode_input(({"id": "o"}, "many"), {}), ctx())
    assert list(refused.value.fields) == ["count"]
    with pytest.raises(EncodeError, match="lock"):
        ship.encode_input((threading.Lock(), 1), {})


# ------------------------------------------------------------------ running


async def test_the_result_passes_its_annotation_the_first_time_too() -> None:
    @function
    async def fetch(ctx: FunctionContext) -> Order:
        return {"id": "o1", "total": "3"}  # type: ignore[return-value]

    assert fetch.decode_result(await execute(fetch, fetch.encode_input((), {}), ctx())) == Order("o1", 3.0)


async def test_a_result_that_cannot_be_kept_fails_the_step_naming_function_and_type() -> None:
    @function
    async def stream(ctx: FunctionContext) -> Any:
        return (n for n in [1, 2])

    with pytest.raises(EncodeError, match=r"'stream'.*generator"):
        await execute(stream, stream.encode_input((), {}), ctx())


@pytest.mark.parametrize("error", [ValueError("no"), StopIteration(3), KeyError("k"), TimeoutError("own")])
async def test_the_functions_own_exception_is_raised(error: Exception) -> None:
    @function(timeout_ms=60_000)
    async def on_the_loop() -> None:
        raise error

    @function(timeout_ms=60_000)
    def in_a_thread() -> None:
        raise error

    wanted = RuntimeError if isinstance(error, StopIteration) else type(error)
    for step in (on_the_loop, in_a_thread):
        with pytest.raises(wanted) as raised:
            await execute(step, step.encode_input((), {}), ctx())
        assert not isinstance(raised.value, StepTimeout)


async def test_a_function_that_takes_too_long_is_stopped_and_told() -> None:
    released = threading.Event()
    contexts = []

    @function(timeout_ms=20)
    async def on_the_loop(ctx: FunctionContext) -> None:
        await asyncio.sleep(3600)

    @function(timeout_ms=20)
    def in_a_thread(ctx: FunctionContext) -> None:
        released.wait()

    for step in (on_the_loop, in_a_thread):
        contexts.append(ctx())
        with pytest.raises(StepTimeout, match=f"{step.name}.*20"):
            await execute(step, step.encode_input((), {}), contexts[-1])
    released.set()
    assert [each.cancelled for each in contexts] == [True, True]


async def test_given_options_replace_the_functions_own() -> None:
    @function(timeout_ms=20)
    async def nap(ctx: FunctionContext) -> str:
        await asyncio.sleep(0.05)
        return "rested"

    assert await execute(nap, nap.encode_input((), {}), ctx(), StepOptions()) == b'"rested"'


async def test_a_plain_function_learns_that_it_was_cancelled() -> None:
    started, seen = threading.Event(), threading.Event()
    context = ctx()

    @function
    def work(ctx: FunctionContext) -> None:
        started.set()
        while not ctx.cancelled:
            pass
        seen.set()

    task = asyncio.create_task(execute(work, work.encode_input((), {}), context))
    await asyncio.to_thread(started.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(seen.wait)


async def test_callables_and_coroutines_run_as_local_steps() -> None:
    def plain() -> Order:
        return Order("p")

    async def with_ctx(ctx: FunctionContext) -> str:
        return ctx.run_id

    async def endless() -> None:
        await asyncio.sleep(3600)

    async def called(fn: Any, options: StepOptions | None = None) -> bytes:
        function = plain_function(fn)
        return await LocalCall(function if options is None else function.with_options(options), (), {}).run(ctx())

    assert await called(plain) == b'{"id":"p","total":0.0}'
    assert await called(with_ctx) == b'"r1"'
    assert await called(lambda: _value({"x": 1})) == b'{"x":1}'
    assert await called(functools.partial(_value, 5)) == b"5"
    assert await LocalAwaitable("d", _value([1])).run(ctx()) == b"[1]"
    with pytest.raises(EncodeError, match=r"'f'.*lock"):
        await LocalAwaitable("f", _value(threading.Lock())).run(ctx())
    with pytest.raises(StepTimeout, match="'endless'"):
        await called(endless, StepOptions(timeout_ms=10))


async def test_hanging_threads_hold_up_neither_new_work_below_the_limit_nor_shutdown() -> None:
    pool = StepThreads(2)
    release = threading.Event()
    hanging = pool.submit(release.wait)
    assert [await asyncio.wrap_future(pool.submit(lambda n=n: n)) for n in range(50)] == list(range(50))
    waiting = [pool.submit(release.wait) for _ in range(3)]
    pool.shutdown(cancel_futures=True)
    assert [future.cancelled() for future in waiting[1:]] == [True, True]
    with pytest.raises(RuntimeError):
        pool.submit(print)
    release.set()
    assert await asyncio.wrap_future(hanging)


# ------------------------------------------------------------------ defining


def test_options_give_the_same_function_with_other_options() -> None:
    @function(retries=5, timeout_ms=100)
    async def charge(ctx: FunctionContext) -> None: ...

    other = charge.options(timeout_ms=7, queue="gpu")
    assert (other.fn, other.name) == (charge.fn, charge.name)
    assert (other.policy.max_attempts, other.policy.timeout_ms, other.policy.queue) == (5, 7, "gpu")
    assert (charge.policy.timeout_ms, charge.policy.queue) == (100, None)
    assert charge.ask_options is None
    assert other.ask_options is not None
    assert StepOptions.from_json(other.ask_options) == other.policy
    assert registry.function("charge") is charge
    with pytest.raises(ValueError, match="retries"):
        charge.options(retries=0)


def test_a_function_keeps_its_name_and_its_documentation() -> None:
    @function
    def documented(x: int) -> int:
        """Says what it does."""
        return x

    assert (documented.name, documented.__name__, documented.__doc__) == (
        "documented",
        "documented",
        "Says what it does.",
    )
    assert documented.fn(3) == 3


def test_what_cannot_be_a_function_is_refused_with_its_place() -> None:
    def numbers() -> Any:
        yield 1

    async def stream() -> Any:
        yield 1

    def late(x: int, ctx: FunctionContext) -> None: ...

    for fn, told in ((numbers, "yields"), (stream, "yields"), (late, "first parameter"), (lambda: 1, "name=")):
        with pytest.raises(DefinitionError, match=rf"test_function.py:\d+.*{told}"):
            function(fn)
    with pytest.raises(DefinitionError, match="twice"):
        function(function(_early))
    with pytest.raises(DefinitionError, match=r"@function\(name='x'\)"):
        function("x")  # type: ignore[call-overload]
    not_functions: list[Any] = [int, 3]
    for wrong in not_functions:
        with pytest.raises(DefinitionError, match="decorates a function"):
            function(wrong)
    with pytest.raises(DefinitionError, match="letters, digits"):
        function(name="a/b")(_early)


def _early(x: int) -> int:
    return x


def test_an_annotation_that_cannot_be_resolved_is_named_with_its_place() -> None:
    @function
    async def fetch(x: Elsewhere) -> Nowhere:  # type: ignore[name-defined]  # noqa: F821
        ...

    with pytest.raises(DefinitionError, match=r"test_function.py:\d+: the annotation of parameter 'x'.*Elsewhere"):
        fetch.decode_input(b'{"args":[1],"kwargs":{}}')
    with pytest.raises(DefinitionError, match="Nowhere"):
        fetch.encode_result(1)


async def test_a_function_whose_result_could_not_be_kept_anyway_is_not_called() -> None:
    called: list[str] = []

    @function
    async def charge() -> threading.Event:
        called.append("async")
        return threading.Event()

    def plain() -> Nowhere:  # type: ignore[name-defined]  # noqa: F821
        called.append("plain")

    with pytest.raises(DefinitionError) as refused:
        await execute(charge, charge.encode_input((), {}), ctx())
    assert not charge.policy.retryable(refused.value, 1)
    with pytest.raises(DefinitionError, match="Nowhere"):
        await LocalCall(plain_function(plain), (), {}).run()
    assert called == []


def test_names_of_types_may_be_defined_after_the_function_and_inside_another() -> None:
    @dataclass
    class Local:
        n: int

    @function
    async def fetch(x: Local, y: Later | None = None) -> list[Local]:
        return [x]

    args, _ = fetch.decode_input(b'{"args":[{"n":1},{"m":2}],"kwargs":{}}')
    assert args == [Local(1), Later(2)]
    assert fetch.decode_result(b'[{"n":3}]') == [Local(3)]


@dataclass
class Later:
    m: int


def test_what_a_function_may_know_has_defaults_that_fit_together() -> None:
    bare = ctx()
    assert (bare.session_id, bare.user_id, bare.attempt, bare.cancelled) == ("r1", "r1", 0, False)
    assert ctx(session_id="s").user_id == "s"
    told: list[Any] = []
    full = ctx(on_progress=lambda *what: told.append(what), on_heartbeat=told.append)
    full.progress(0.5, "half")
    full.heartbeat({"row": 3})
    bare.progress(1.0)
    bare.heartbeat()
    bare.logger.info("works without a driver")
    assert told == [(0.5, "half"), {"row": 3}]


async def test_what_a_function_tells_from_its_thread_arrives_on_the_loop() -> None:
    loop_thread, told = threading.get_ident(), []

    def tell(*what: Any) -> None:
        told.append((threading.get_ident() == loop_thread, what))

    @function
    def work(ctx: FunctionContext) -> None:
        ctx.progress(0.5, "half")
        ctx.heartbeat(3)
        ctx.logger.info("row %d", 7, extra={"table": "t"})
        ctx.logger.info("odd %d", "x")

    await execute(work, work.encode_input((), {}), ctx(on_progress=tell, on_heartbeat=tell, on_log=tell))
    assert told == [
        (True, (0.5, "half")),
        (True, (3,)),
        (True, ("info", "row 7", {"step": "test", "table": "t"})),
        (True, ("info", "odd %d ('x',)", {"step": "test"})),
    ]


def test_log_records_of_a_function_carry_its_run_and_step(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="agnt5.function"):
        ctx(attempt=2).logger.info("charged %s", "o1", extra={"amount": 5})
    record: Any = caplog.records[0]
    assert (record.getMessage(), record.run_id, record.step, record.attempt, record.amount) == (
        "charged o1",
        "r1",
        "test",
        2,
        5,
    )
    assert record.filename == "test_function.py"
