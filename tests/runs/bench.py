"""One partition for tests that tell the records one by one: apply, look, checkpoint, lose the memory, look again."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic_core import to_json

from agnt5.workflow import Workflow
from agnt5_engine.records.avro import decode, encode
from agnt5_engine.records.journal import (
    CallInterrupted,
    OwnerClaimed,
    RunFinished,
    RunRequested,
    RunRetried,
    StateWritten,
    StepSucceeded,
)
from agnt5_engine.runs import apply as core
from agnt5_engine.runs import checkpoint, table
from agnt5_engine.runs.ask import ask_everything
from agnt5_engine.runs.checkpoint import Row
from agnt5_engine.runs.effects import Append, Call, Effect, Verdict
from agnt5_engine.runs.model import Run
from tests.runs.simulator import START, drive, marker_of
from tests.runs.storage import Store, evict, state_of

T = TypeVar("T")


class Known:
    """Code that consists of these workflows."""

    max_payload = 1 << 20

    def __init__(self, *workflows: Workflow[Any]) -> None:
        self.workflows = {workflow.name: workflow for workflow in workflows}

    def workflow(self, name: str) -> Workflow[Any] | None:
        return self.workflows.get(name)


class Partition:
    """`told` collects the effects since it was last emptied; each record comes a second after the one before."""

    def __init__(self, *workflows: Workflow[Any]) -> None:
        self.code = Known(*workflows)
        self.store = Store()
        self.clock = START
        self.told: list[Effect] = []
        self.journal: list[tuple[int, Any]] = []
        self.state = state_of(self.store, self.code)
        self.apply(OwnerClaimed("owner", "1"))
        ask_everything(self.state, unclean=False)

    # ------------------------------------------------------------------ records

    def apply(self, *records: Any) -> list[Effect]:
        """Apply what comes next in the journal; returns what that asks for."""
        for record in records:
            self.clock += 1000
            self.journal.append((self.clock, decode(encode(record))))
            core.apply(self.state, len(self.journal) - 1, *self.journal[-1])
        effects, self.state.effects = self.state.effects, []
        self.told += effects
        return effects

    def request(self, workflow: Workflow[Any], run_id: str = "run", session: str | None = None, **input: Any) -> None:
        self.apply(
            RunRequested(
                run_id, f"start {run_id}", workflow.name, to_json(input), session, None, b"{}", None, None, {}, None
            )
        )

    def succeed(self, path: str, result: Any = None, run_id: str = "run", attempt: int = 0) -> list[Effect]:
        return self.apply(StepSucceeded(run_id, path, attempt, to_json(result), self.state.claim))

    def write(self, run_id: str = "run") -> list[Effect]:
        """Apply the session write that the run asks for."""
        asked = [e.record for e in self.told if isinstance(e, Append) and e.run_id == run_id]
        return self.apply([r for r in asked if isinstance(r, StateWritten)][-1])

    def end(self, run_id: str = "run") -> list[Effect]:
        """Apply the record that says how the run's code ended."""
        ended = [e.record for e in self.told if isinstance(e, Append) and e.run_id == run_id]
        record = [r for r in ended if isinstance(r, RunFinished | RunRetried)][-1]
        return self.apply(record)

    def interrupt(self) -> list[Effect]:
        """Apply the record that says how far in-place calls had come."""
        return self.apply(next(e.record for e in self.asked(Append) if isinstance(e.record, CallInterrupted)))

    def finish_call(self, call: Call, error: BaseException | None = None) -> None:
        """Let this in-place call return, or raise."""
        self.told.remove(call)
        result = drive(call.call.run()) if error is None else None
        core.finish_call(self.state, call.key, call.call.token, result, error)
        self.told += self.state.effects
        self.state.effects = []

    def finish_calls(self) -> None:
        """Let every in-place call return, and those that come of it."""
        while calls := self.asked(Call):
            self.finish_call(calls[0])

    # ------------------------------------------------------------------ memory

    def checkpoint(self) -> list[Row]:
        rows = checkpoint.changes(self.state)
        self.store.write([*rows, Row(table.MARKER, encode(marker_of(self.state)))])
        return rows

    def forget(self) -> None:
        """Checkpoint, and let everything leave memory that may."""
        self.checkpoint()
        checkpoint.forget_clean(self.state, keep=0)

    def crash(self) -> None:
        """A new owner: the rows of the last checkpoint, and the journal after it."""
        evict(self.state)
        self.state = state_of(self.store, self.code)
        for key in list(self.state.sessions):
            core.resume_queue(self.state, key)
        for offset in range(self.state.applied + 1, len(self.journal)):
            core.apply(self.state, offset, *self.journal[offset])
        calls = [e for e in self.state.effects if isinstance(e, Call)]
        self.state.effects = []
        ask_everything(self.state, unclean=False)
        self.told = [*calls, *self.state.effects]
        self.state.effects = []

    # ------------------------------------------------------------------ looking

    def run(self, run_id: str = "run") -> Run:
        run = self.state.run(run_id)
        assert run is not None
        return run

    def asked(self, kind: type[T]) -> list[T]:
        return [e for e in self.told if isinstance(e, kind)]

    def verdicts(self, command_id: str) -> list[str | None]:
        return [v.reason for v in self.asked(Verdict) if v.command_id == command_id]
