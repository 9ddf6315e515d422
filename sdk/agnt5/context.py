"""`ctx` of a workflow: every durable operation, and what a run knows of itself."""

from __future__ import annotations

import math
import random
import re
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

from agnt5.batch import BatchResult, BatchRun
from agnt5.codec import check_text, codec_for, decode_plain
from agnt5.function import Function
from agnt5.functioncontext import FunctionContext
from agnt5.live_logger import LiveLogger
from agnt5.replay.children import ChildHandle, ChildStart, child_of
from agnt5.replay.entries import Entry, caller
from agnt5.replay.inplace import InPlace
from agnt5.replay.joins import Join
from agnt5.replay.logger import workflow_logger
from agnt5.replay.pending import Pending
from agnt5.replay.protocol import EmitAsk, SignalAsk, SleepAsk
from agnt5.replay.questions import question as make_question
from agnt5.replay.steps import step_of
from agnt5.state import RunState, SessionState, State, UserState

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation
    from agnt5.workflow import Workflow

R = TypeVar("R")

_LATEST = 253_402_300_799_000
"""The end of the year 9999 in milliseconds: where datetime ends."""
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class Scope:
    """`ctx.session` and `ctx.user`: an `id` and a `state`."""

    __slots__ = ("id", "state")

    def __init__(self, id: str, state: State) -> None:
        self.id = id
        self.state = state


class WorkflowContext:
    """Handed to a workflow as `ctx`. Works only in the workflow's own code, which is replayed: everything that
    touches the world goes through it.

    - `run_id`, `session_id`, `user_id`, `workflow_name`, `metadata`: of this run
    - `attempt`: 0, then 1 after the first retry of the whole run
    - `state`, `session.state`, `user.state`: see `agnt5.state.State`
    - `logger`: a standard logger, silent during replay
    """

    __slots__ = ("_activation", "_logger", "_session", "_state", "_user")

    def __init__(self, activation: Activation) -> None:
        self._activation = activation
        # Made when they are first used: most runs need few of them.
        self._state: RunState | None = None
        self._session: Scope | None = None
        self._user: Scope | None = None
        self._logger: LiveLogger | None = None

    # ------------------------------------------------------------------ what the run is

    @property
    def run_id(self) -> str:
        return self._activation.info.run_id

    @property
    def session_id(self) -> str:
        """The run's ID when it was given none."""
        return self._activation.info.session_id

    @property
    def user_id(self) -> str:
        """The session's ID when it was given none."""
        return self._activation.info.user_id

    @property
    def workflow_name(self) -> str:
        return self._activation.info.workflow

    @property
    def attempt(self) -> int:
        return self._activation.info.attempt

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._activation.info.metadata

    @property
    def state(self) -> State:
        if self._state is None:
            self._state = RunState(self._activation)
        return self._state

    @property
    def session(self) -> Scope:
        if self._session is None:
            self._session = Scope(self.session_id, SessionState(self._activation))
        return self._session

    @property
    def user(self) -> Scope:
        if self._user is None:
            self._user = Scope(self.user_id, UserState(self._activation))
        return self._user

    @property
    def logger(self) -> LiveLogger:
        if self._logger is None:
            self._logger = workflow_logger(self._activation)
        return self._logger

    # ------------------------------------------------------------------ steps

    @overload
    def step(
        self, fn: Callable[..., Coroutine[Any, Any, R]], /, *args: Any, key: str | None = None, **kwargs: Any
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def step(
        self, fn: Callable[..., R], /, *args: Any, key: str | None = None, **kwargs: Any
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def step(self, fn: Any, /, *args: Any, key: str | None = None, **kwargs: Any) -> Coroutine[Any, Any, Any]: ...
    def step(self, fn: Any, /, *args: Any, key: str | None = None, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Call a function once and remember its result.

            await ctx.step(charge, order_id)                  a @function, or any function
            await ctx.step("charge", lambda: charge_it(x))    a name, and a callable or a coroutine
            await ctx.step("charge_customer", order_id)       a registered function by its name

        All other keywords go to the function; `key` is reserved. Raises StepError after the last attempt."""
        if key is not None and not isinstance(key, str):
            raise TypeError(f"key must be text, not {key!r}; a function's own keyword of that name goes by position")
        return step_of(self._activation, None, fn, args, kwargs, caller())

    @overload
    def run(
        self, fn: Callable[..., Coroutine[Any, Any, R]], /, *args: Any, key: str | None = None, **kwargs: Any
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def run(
        self, fn: Callable[..., R], /, *args: Any, key: str | None = None, **kwargs: Any
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def run(self, fn: Any, /, *args: Any, key: str | None = None, **kwargs: Any) -> Coroutine[Any, Any, Any]: ...
    def run(self, fn: Any, /, *args: Any, key: str | None = None, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """The same as `step`."""
        if key is not None and not isinstance(key, str):
            raise TypeError(f"key must be text, not {key!r}; a function's own keyword of that name goes by position")
        return step_of(self._activation, None, fn, args, kwargs, caller())

    def parallel(self, *awaitables: Awaitable[Any], return_exceptions: bool = False) -> Coroutine[Any, Any, list[Any]]:
        """Everything at once; the results in order. The first failure cancels the rest, waits for their end and is
        raised; with `return_exceptions` failures are among the results instead.

        Takes operations of ctx, functions called without ctx, and coroutines that use ctx."""
        return Join(self._activation, "ctx.parallel", awaitables, None, return_exceptions, caller())

    def gather(
        self, *positional: Any, return_exceptions: bool = False, **awaitables: Awaitable[Any]
    ) -> Coroutine[Any, Any, dict[str, Any]]:
        """As `parallel`, by name: `data = await ctx.gather(users=count_users(), errors=count_errors())`."""
        if positional:
            for given in positional:
                getattr(given, "close", bool)()
            raise TypeError("ctx.gather takes its awaitables by name (users=...); ctx.parallel takes them in order")
        return Join(
            self._activation,
            "ctx.gather",
            tuple(awaitables.values()),
            tuple(awaitables),
            return_exceptions,
            caller(),
        )

    @overload
    def batch(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]],
        items: Iterable[Any],
        max_concurrency: int = 10,
        continue_on_failure: bool = True,
        timeout_per_item: float | timedelta | None = None,
    ) -> Coroutine[Any, Any, BatchResult[R]]: ...
    @overload
    def batch(
        self,
        fn: Callable[..., R],
        items: Iterable[Any],
        max_concurrency: int = 10,
        continue_on_failure: bool = True,
        timeout_per_item: float | timedelta | None = None,
    ) -> Coroutine[Any, Any, BatchResult[R]]: ...
    @overload
    def batch(
        self,
        fn: Any,
        items: Iterable[Any],
        max_concurrency: int = 10,
        continue_on_failure: bool = True,
        timeout_per_item: float | timedelta | None = None,
    ) -> Coroutine[Any, Any, BatchResult[Any]]: ...
    def batch(
        self,
        fn: Any,
        items: Iterable[Any],
        max_concurrency: int = 10,
        continue_on_failure: bool = True,
        timeout_per_item: float | timedelta | None = None,
    ) -> Coroutine[Any, Any, BatchResult[Any]]:
        """`fn` over `items`, `max_concurrency` at a time. An item that is a dict is keyword arguments, else it is the
        one argument. `timeout_per_item`: seconds, retries included. With `continue_on_failure=False` the first failure
        cancels the rest."""
        return self._batch(fn, items, max_concurrency, continue_on_failure, timeout_per_item, BatchRun.result_object)

    @overload
    def map(
        self, fn: Callable[..., Coroutine[Any, Any, R]], items: Iterable[Any], max_concurrency: int = 10
    ) -> Coroutine[Any, Any, list[R]]: ...
    @overload
    def map(
        self, fn: Callable[..., R], items: Iterable[Any], max_concurrency: int = 10
    ) -> Coroutine[Any, Any, list[R]]: ...
    @overload
    def map(self, fn: Any, items: Iterable[Any], max_concurrency: int = 10) -> Coroutine[Any, Any, list[Any]]: ...
    def map(self, fn: Any, items: Iterable[Any], max_concurrency: int = 10) -> Coroutine[Any, Any, list[Any]]:
        """As `batch`, giving the outputs in order. An item that fails cancels the rest and is raised."""

        def outputs(batch: BatchRun[Any]) -> list[Any]:
            error = batch.first_error()
            if error is not None:
                raise error
            return batch.outputs()

        return self._batch(fn, items, max_concurrency, False, None, outputs)

    def _batch(
        self,
        fn: Any,
        items: Iterable[Any],
        max_concurrency: int,
        continue_on_failure: bool,
        timeout_per_item: float | timedelta | None,
        finish: Callable[[BatchRun[Any]], Any],
    ) -> BatchRun[Any]:
        if isinstance(items, (str, bytes, Mapping)):
            raise TypeError(f"items must be a list of items, not one {type(items).__name__}")
        if isinstance(max_concurrency, bool) or not isinstance(max_concurrency, int) or max_concurrency < 1:
            raise ValueError(f"max_concurrency must be a whole number from 1, not {max_concurrency!r}")
        if isinstance(fn, Pending) or not (callable(fn) or isinstance(fn, str)):
            raise TypeError(f"batch and map take a function and its items, not {fn!r}")
        activation, site = self._activation, caller(3)
        timeout_ms = (
            None if timeout_per_item is None else self._due(timeout_per_item, "timeout_per_item") - activation.now
        )

        def step(path: str, item: Any) -> Entry[Any]:
            if isinstance(item, Mapping):
                return step_of(activation, path, fn, (), dict(item), site)
            return step_of(activation, path, fn, (item,), {}, site)

        path = activation.branch().take()
        return BatchRun(
            activation, path, step, list(items), max_concurrency, continue_on_failure, timeout_ms, finish, site
        )

    def _called(self, function: Function[R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, R]:
        """`fn(...)`, a function called without ctx: the same as `ctx.step(fn, ...)`."""
        return step_of(self._activation, None, function, args, kwargs, caller(3))

    def _in_place(self, function: Function[R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, R]:
        """`await fn(ctx, ...)`: see `agnt5.replay.inplace`."""
        info, activation = self._activation.info, self._activation
        activation.branch()
        ctx = FunctionContext(
            name=function.name,
            run_id=info.run_id,
            session_id=info.session_id,
            user_id=info.user_id,
            workflow_name=info.workflow,
            attempt=info.attempt,
            idempotency_key=f"{info.run_id}/{function.name}",
            metadata=info.metadata,
            on_progress=self.progress,
            on_log=self._log,
        )
        return InPlace(activation, function, ctx, args, kwargs, caller(3))

    # ------------------------------------------------------------------ waiting

    def sleep(self, seconds: float | timedelta, name: str | None = None) -> Coroutine[Any, Any, None]:
        """Wait for `seconds` of the log's time, whatever happens to the process meanwhile."""
        due = self._due(seconds, "seconds")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be text, not {name!r}")
        named = check_text(name or "sleep", "the name of a sleep")
        path = self._activation.branch().take()
        return Entry(self._activation, SleepAsk(path, named, due), caller(), None)

    def wait_for_user(
        self,
        question: str,
        input_type: str = "text",
        options: Sequence[Mapping[str, Any] | str] | None = None,
        allow_custom: bool = False,
        skippable: bool = False,
        timeout: float | timedelta | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Ask a person. Gives the text or the chosen option's id, a list of ids for `multiselect`, None when skipped.

        `input_type`: text, approval (approve and reject unless options say else), select or multiselect. `options`:
        `{"id", "label"}` each. `timeout` (seconds): TimeoutError after it."""
        due = None if timeout is None else self._due(timeout, "timeout")
        ask = make_question("", question, input_type, options, allow_custom, skippable, due)
        self._activation.checked(ask.question.encode() + ask.options, "the question with its options")
        return Entry(self._activation, ask._replace(path=self._activation.branch().take()), caller())

    def wait_for_signal(
        self, name: str, type: Any = None, timeout: float | timedelta | None = None
    ) -> Coroutine[Any, Any, Any]:
        """The payload of the next signal of that name that has not been taken, also one that came before. `type`
        coerces it. `timeout` (seconds): TimeoutError after it."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"a signal's name must be text that is not empty, not {name!r}")
        check_text(name, "a signal's name")
        due = None if timeout is None else self._due(timeout, "timeout")
        decode = decode_plain if type is None else codec_for(type).decode
        return Entry(self._activation, SignalAsk(self._activation.branch().take(), name, due), caller(), decode)

    # ------------------------------------------------------------------ other runs, other topics

    def start(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, ChildHandle]:
        """Start a child run, without waiting for it: `handle.run_id`, `await handle.result()`, `.cancel()`,
        `.signal(name, payload)`. It inherits session and user, and is cancelled when this run is, unless
        `workflow.options(detached=True)` says else. Raises InputError for input that does not bind."""
        return ChildStart(self._activation, child_of(self._activation, workflow, args, kwargs, caller()), caller())

    @overload
    def call(self, workflow: Workflow[R], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, R]: ...
    @overload
    def call(self, workflow: str, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]: ...
    def call(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Run a child to its end and give its output. Raises ChildError when it fails; otherwise as `start`."""
        return child_of(self._activation, workflow, args, kwargs, caller())

    def emit(
        self,
        topic: str,
        value: Any,
        key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
    ) -> Coroutine[Any, Any, None]:
        """Publish an event to a Kafka topic, at least once; the header `agnt5-event-id` is the same each time."""
        if not isinstance(topic, str) or not _TOPIC.fullmatch(topic) or topic in (".", ".."):
            raise ValueError(f"topic {topic!r}: Kafka takes letters, digits, '.', '_' and '-', at most 249 of them")
        data = self._activation.encoded(value, f"the event for topic {topic!r}")
        sent = tuple(
            (check_text(str(name), "a header's name"), _bytes(held, f"header {name!r}"))
            for name, held in (headers or {}).items()
        )
        named = None if key is None else _bytes(key, "key")
        beside = b"".join([named or b"", *(name.encode() + held for name, held in sent)])
        self._activation.checked(beside, f"the key of the event for topic {topic!r}, with its headers,")
        return Entry(
            self._activation, EmitAsk(self._activation.branch().take(), topic, data, named, sent), caller(), None
        )

    # ------------------------------------------------------------------ the same in every replay

    def now(self) -> datetime:
        """The log's time, in UTC."""
        seconds, ms = divmod(self._activation.now, 1000)
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=ms * 1000)

    def random(self) -> random.Random:
        """A generator seeded by the run. One per branch, which goes on where it was."""
        return self._activation.branch().random()

    def uuid(self) -> uuid.UUID:
        """A random UUID (version 4)."""
        return self._activation.branch().uuid()

    def patched(self, name: str) -> bool:
        """Guards a change of the code: False in runs that passed this point before the call was there, True in all
        others, and the same in every replay."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"a patch's name must be text that is not empty, not {name!r}")
        return self._activation.patched(check_text(name, "a patch's name"))

    def progress(self, fraction: float | None = None, message: str | None = None) -> None:
        """Tell whoever watches the run live; nothing is recorded. `fraction` is from 0 to 1."""
        if fraction is not None and (isinstance(fraction, bool) or not isinstance(fraction, (int, float))):
            raise TypeError(f"fraction must be a number from 0 to 1, not {fraction!r}")
        listener = self._activation.listener
        if listener is not None and not self._activation.replaying:
            listener.progress(fraction, message)

    def _log(self, level: str, message: str, fields: dict[str, Any]) -> None:
        """A line of a function that runs in place."""
        listener = self._activation.listener
        if listener is not None and not self._activation.replaying:
            listener.log(level, message, fields)

    # ------------------------------------------------------------------

    def _due(self, seconds: Any, what: str) -> int:
        due = self._activation.now + _milliseconds(seconds, what)
        if due > _LATEST:
            raise ValueError(f"{what}={seconds!r} ends after the year 9999")
        return due

    def __repr__(self) -> str:
        return f"<WorkflowContext of run {self.run_id}>"


def _milliseconds(seconds: Any, what: str) -> int:
    """A duration in whole milliseconds, up. Raises ValueError for what is no finite duration."""
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise ValueError(f"{what} must be a number of seconds or a timedelta, not {seconds!r}")
    if not 0 <= seconds < math.inf:  # also NaN
        raise ValueError(f"{what} must be finite and not negative, not {seconds!r}")
    return math.ceil(seconds * 1000 - 1e-6)


def _bytes(value: Any, what: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    raise TypeError(f"{what} must be text or bytes, not {value!r}")
