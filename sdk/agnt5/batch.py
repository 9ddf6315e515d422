"""`ctx.batch` and `ctx.map`: one function over many items, some at a time, each item an entry of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from agnt5.errors import error_info, short_type
from agnt5.replay.entries import Entry, Operation, Site
from agnt5.replay.pending import Pending
from agnt5.replay.protocol import SleepAsk

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

ItemStatus = Literal["completed", "failed", "cancelled", "pending"]
BatchStatus = Literal["completed", "partial", "failed", "cancelled"]
TIMEOUT = "timeout"
"""Name of the timers behind `timeout_per_item`."""


@dataclass(frozen=True, slots=True)
class BatchError:
    """Why an item failed: the original exception's type (its last dotted part) and its message."""

    type: str
    message: str

    @property
    def code(self) -> str:
        return self.type

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"

    def __contains__(self, text: str) -> bool:
        return text in str(self)


@dataclass(frozen=True, slots=True)
class BatchItemResult(Generic[T]):
    """What became of one item. `duration_ms` is from its start to its end, retries and their waits included."""

    index: int
    status: ItemStatus
    output: T | None = None
    error: BatchError | None = None
    duration_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchStats:
    """How many items there were, and what became of them. `pending_items` were never started."""

    total_items: int
    completed_items: int
    failed_items: int
    cancelled_items: int
    pending_items: int
    duration_ms: float
    avg_item_duration_ms: float


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[T]):
    """What became of a batch; `results` are in the order of the items.

    `status`: `completed` when every item is, `failed` when none is, `partial` else."""

    batch_id: str
    status: BatchStatus
    results: list[BatchItemResult[T]]
    stats: BatchStats

    @property
    def is_success(self) -> bool:
        """Every item completed."""
        return self.stats.completed_items == self.stats.total_items

    @property
    def is_partial_failure(self) -> bool:
        """Some items completed and some did not."""
        return 0 < self.stats.completed_items < self.stats.total_items

    @property
    def outputs(self) -> list[T | None]:
        """The outputs in the order of the items, None for one that did not complete."""
        return [result.output for result in self.results]

    def successful_outputs(self) -> list[Any]:
        """The outputs of the completed items, in order."""
        return [result.output for result in self.results if result.status == "completed"]

    def failed_items(self) -> list[BatchItemResult[T]]:
        """The results of the failed items, in order."""
        return [result for result in self.results if result.status == "failed"]


class BatchRun(Operation[T_co]):
    """Up to `max_concurrency` items at a time; the next starts as one ends. No task is made for an item, so ten
    thousand cost what ten thousand steps cost."""

    __slots__ = (
        "_errors",
        "_finish",
        "_items",
        "_limit_ms",
        "_next",
        "_path",
        "_results",
        "_running",
        "_started",
        "_starting",
        "_step",
        "_stop_at_failure",
        "_stopped",
        "_told",
        "_window",
    )

    def __init__(
        self,
        activation: Activation,
        path: str,
        step: Callable[[str, Any], Entry[Any]],
        items: Sequence[Any],
        max_concurrency: int,
        continue_on_failure: bool,
        timeout_ms: int | None,
        finish: Callable[[BatchRun[Any]], Any],
        site: Site,
    ) -> None:
        super().__init__(activation, site)
        self._path = path
        self._step = step
        self._items = items
        self._window = max_concurrency
        self._stop_at_failure = not continue_on_failure
        self._limit_ms = timeout_ms
        self._finish = finish
        self._results: list[BatchItemResult[Any] | None] = [None] * len(items)
        self._errors: dict[int, BaseException] = {}
        self._running: dict[int, tuple[int, int, Entry[Any], Entry[Any] | None]] = {}  # index, start, step, limit
        self._next = 0
        self._starting = False
        self._stopped = False
        self._told: tuple[Any] | None = None
        self._started = 0

    def described(self) -> str:
        return f"ctx.batch(..., {len(self._items)} items)"

    def _ask(self) -> None:
        self._started = self.activation.now
        self._fill()

    # -- items

    def _fill(self) -> None:
        """Start items until the window is full. An item may end while it is started: no recursion then."""
        if self._starting:
            return
        self._starting = True
        while not self._stopped and self._next < len(self._items) and len(self._running) < self._window:
            index = self._next
            self._next += 1
            self._start(index)
        self._starting = False
        if not self._running and (self._stopped or self._next == len(self._items)):
            self._end()

    def _start(self, index: int) -> None:
        now = self.activation.now
        path = f"{self._path}/{index}"
        try:
            entry = self._step(path, self._items[index])
        except Exception as error:  # an item the function cannot be called with
            self._note(index, now, "failed", error=error)
            return
        limit: Entry[Any] | None = None
        if self._limit_ms is not None:
            limit = Entry(self.activation, SleepAsk(f"{path}/0", TIMEOUT, now + self._limit_ms), self.site, None)
            limit.watcher = _Limit(self, entry, index)
        self._running[id(entry)] = (index, now, entry, limit)
        entry.watcher = self
        entry.begin()
        if limit is not None:
            limit.begin()

    def settled(self, entry: Pending[Any]) -> None:
        """An item has ended."""
        index, started, _, limit = self._running.pop(id(entry))
        if limit is not None and not limit.done():
            limit.watcher = None
            limit.cancel()
        if entry.cancelled():
            if limit is not None and limit.done() and not limit.cancelled():
                told = TimeoutError(f"item {index} took longer than timeout_per_item={(self._limit_ms or 0) / 1000:g}")
                self._note(index, started, "failed", error=told)
            else:
                self._note(index, started, "cancelled")
        elif (error := entry.exception()) is not None:
            self._note(index, started, "failed", error=error)
        else:
            self._note(index, started, "completed", entry.result())
        self._fill()

    def _note(
        self, index: int, started: int, status: ItemStatus, output: Any = None, error: BaseException | None = None
    ) -> None:
        told = None
        if error is not None:
            info = error_info(error)
            told = BatchError(short_type(info.type), info.message)
            self._errors[index] = error
        self._results[index] = BatchItemResult(index, status, output, told, float(self.activation.now - started))
        if error is not None and self._stop_at_failure:
            self._stop()

    def _stop(self) -> None:
        """Start nothing more, cancel what runs."""
        if not self._stopped:
            self._stopped = True
            for _, _, entry, _ in list(self._running.values()):
                entry.cancel()

    # -- the end

    def _end(self) -> None:
        if self.done():
            return
        if self._told is not None:
            super().cancel(*self._told)
            return
        try:
            self.finish(self._finish(self))
        except Exception as error:
            self.fail(error)

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        self.begin()
        if self.done():
            return False
        self._told = (msg,)
        self._stop()
        self._fill()
        return True

    def first_error(self) -> BaseException | None:
        """Of the item that failed first in the order of the items."""
        return self._errors[min(self._errors)] if self._errors else None

    def outputs(self) -> list[Any]:
        return [None if result is None else result.output for result in self._results]

    def result_object(self) -> BatchResult[Any]:
        results = [
            BatchItemResult(index, "pending") if result is None else result
            for index, result in enumerate(self._results)
        ]
        count = dict.fromkeys(("completed", "failed", "cancelled", "pending"), 0)
        for result in results:
            count[result.status] += 1
        ended = count["completed"] + count["failed"]
        spent = sum(result.duration_ms for result in results if result.status in ("completed", "failed"))
        status: BatchStatus = "partial"
        if count["completed"] == len(results):
            status = "completed"
        elif count["completed"] == 0:
            status = "failed"
        return BatchResult(
            batch_id=f"{self.activation.info.run_id}/{self._path}",
            status=status,
            results=results,
            stats=BatchStats(
                total_items=len(results),
                completed_items=count["completed"],
                failed_items=count["failed"],
                cancelled_items=count["cancelled"],
                pending_items=count["pending"],
                duration_ms=float(self.activation.now - self._started),
                avg_item_duration_ms=spent / ended if ended else 0.0,
            ),
        )


class _Limit:
    """An item's time is up: cancel its step."""

    __slots__ = ("batch", "entry", "index")

    def __init__(self, batch: BatchRun[Any], entry: Entry[Any], index: int) -> None:
        self.batch = batch
        self.entry = entry
        self.index = index

    def settled(self, limit: Pending[Any]) -> None:
        if not limit.cancelled():
            self.entry.cancel()
