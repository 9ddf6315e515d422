"""What must be true of a world: while it runs (`Watch`), and when it has come to rest (`judge`)."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from agnt5_engine.records.avro import decode
from agnt5_engine.records.journal import OwnerClaimed, RunOutcome, StateWritten
from agnt5_engine.runs import history as h
from agnt5_engine.runs import table
from agnt5_engine.runs.effects import Call
from agnt5_engine.runs.model import Run
from agnt5_engine.runs.outbox import OUTCOMES
from agnt5_engine.runs.state import PartitionState
from tests.runs import programs
from tests.runs.simulator import Owner, World, drive
from tests.runs.simulator import core as apply_module
from tests.runs.snapshots import Snapshot, differences, snapshot
from tests.runs.storage import Store, evict, state_of


def undisturbed(state: PartitionState) -> bool:
    """Nothing is in the middle of an in-place call: the rows say all there is."""
    return all(session.turn is None for session in state.sessions.values())


class Watch:
    """Compares every owner with the first that was at the same offset, and looks at what is executed."""

    def __init__(self, every: int = 5, agree: bool = True) -> None:
        self.every = every
        self.agree = agree
        self.seen: dict[tuple[int, int], Snapshot] = {}
        self.bad: list[str] = []
        self.compared = 0

    def applied(self, owner: Owner, offset: int) -> None:
        if not self.agree or offset % self.every or not undisturbed(owner.state):
            return
        now = snapshot(owner.state)
        before = self.seen.setdefault((owner.partition, offset), now)
        if before is not now:
            self.compared += 1
            if before != now:
                self.bad.append(f"owners disagree: partition {owner.partition} at {offset}: {differences(before, now)}")

    def executes(self, owner: Owner, run: Run, path: str) -> None:
        p = run.pending[path]
        for row in run.history:
            if row.path == path and row.event in (h.RESOLVED, h.KEPT) and row.kind == "step" and row.digest == p.digest:
                self.bad.append(f"a completed step is executed again: {run.run_id}/{path}")


# ------------------------------------------------------------------ when everything is at rest


def judge(world: World, watch: Watch) -> list[str]:
    """All that is wrong with a world that has come to rest."""
    bad = list(dict.fromkeys(watch.bad))
    runs = {run.run_id: run for owner in world.current() for run in owner.every_run()}
    for owner in world.current():
        bad += _at_rest(owner)
        bad += _verdicts(owner)
    for run in runs.values():
        bad += _public_events(run)
        bad += _result(world, run)
    for run_id in world.requests:
        if run_id not in runs:
            bad.append(f"lost: run {run_id} was asked for and is not known")
    bad += _outcomes(world, runs)
    bad += _session_counters(world)
    bad += _counts(world, runs)
    bad += _signals(world, runs)
    return bad


def _at_rest(owner: Owner) -> list[str]:
    bad = []
    for run in owner.every_run():
        if not run.ended:
            waits = {path: type(p.ask).__name__ for path, p in run.pending.items()}
            bad.append(f"never ends: run {run.run_id} ({run.workflow}) is {run.status}, waits for {waits}")
        elif run.pending:
            bad.append(f"ended and waits: run {run.run_id}")
    for session in owner.state.sessions.values():
        if session.lock is not None or session.queue:
            bad.append(f"stuck: session {session.key} {session.lock} {len(session.queue)} waiting")
    if owner.state.outbox:
        bad.append(f"never sent: {list(owner.state.outbox)}")
    if owner.state.paused:
        bad.append(f"parked for ever: {owner.state.paused}")
    return bad


def _verdicts(owner: Owner) -> list[str]:
    bad = []
    for command, heard in owner.heard.items():
        given = owner.verdicts[command]
        if given < heard:
            bad.append(f"no verdict: command {command} was applied {heard} times, {given} verdicts")
        elif given > heard + owner.replayed[command] and not owner.world.weather.unfit:
            bad.append(f"verdict repeated: command {command} was applied {heard} times, {given} verdicts")
    return bad


def _public_events(run: Run) -> list[str]:
    seqs = [event.seq for row in run.history for event in h.public_events(row)]
    if seqs != list(range(1, len(seqs) + 1)) or run.seq != len(seqs):
        return [f"event numbers have gaps: run {run.run_id} {seqs}, counts {run.seq}"]
    counted = [h.public_count(row) for row in run.history]
    if sum(counted) != len(seqs):
        return [f"event count is wrong: run {run.run_id}"]
    if sum(row.event == h.START for row in run.history) > 1:
        return [f"started twice: run {run.run_id}"]
    return []


_CHILDREN = {("failed", "model.stubborn"), ("timeout", "model.limited")}


def told_in(world: World) -> set[str]:
    return {*world.told, "from parent"}


def _result(world: World, run: Run) -> list[str]:
    request = world.requests.get(run.run_id)
    if not run.ended:
        return []
    if run.status == "completed":
        ops = from_json(run.input)["ops"]
        output = from_json(run.output or b"null")
        if not programs.has_result(ops, output, told_in(world)):
            return [f"wrong result: run {run.run_id} gave {output} for {ops}"]
        if ops[0] == ["chance"] and not run.attempt and datetime.fromisoformat(output[0][2]) != _began(run):
            return [f"wrong result: run {run.run_id} began at {_began(run)} and saw {output[0][2]}"]
        return []
    if request is None:  # a child
        if run.status != "cancelled" and (run.status, run.workflow) not in _CHILDREN:
            return [f"wrong end: child {run.run_id} is {run.status}: {run.error_type} {run.message}"]
        return []
    expected = set()
    if request.cancelled:
        expected.add("cancelled")
    if run.workflow == "model.limited":
        expected.add("timeout")
    booms = [op[1] for op in from_json(run.input)["ops"] if op[0] == "boom"]
    if booms and (booms[0] > 2 or request.cancelled):
        expected.add("failed")
    if run.status == "failed" and (run.error_type or "").endswith("Boom") is False:
        return [f"wrong error: run {run.run_id} {run.error_type} {run.message} {run.traceback}"]
    if run.status not in expected:
        return [f"wrong end: run {run.run_id} ({run.workflow}) is {run.status}: {run.error_type} {run.message}"]
    return []


def _began(run: Run) -> datetime:
    assert run.started_at is not None
    return datetime.fromtimestamp(run.started_at // 1000, UTC).replace(microsecond=run.started_at % 1000 * 1000)


def _outcomes(world: World, runs: dict[str, Run]) -> list[str]:
    """One public outcome for each end, however often it is published."""
    bad = []
    published: dict[str, set[bytes]] = {}
    for row in world.topics.get(OUTCOMES, ()):
        published.setdefault(row.id, set()).add(row.value)
    for id, values in published.items():
        if len(values) > 1:
            bad.append(f"outcomes differ: {id}: {[decode(v) for v in values]}")
    last: dict[str, RunOutcome] = {}
    for row in world.topics.get(OUTCOMES, ()):
        outcome = decode(row.value)
        if outcome.run_id not in last or outcome.finished_at >= last[outcome.run_id].finished_at:
            last[outcome.run_id] = outcome
    for run in runs.values():
        if run.ended and (run.run_id not in last or last[run.run_id].status != run.status):
            bad.append(f"outcome missing: run {run.run_id} is {run.status}")
    return bad


def _session_counters(world: World) -> list[str]:
    """The counters, against the writes that an independent reading of the journals says took effect."""
    bad = []
    for p, place in enumerate(world.places):
        claim = -1
        writes = Counter[str]()
        bases: dict[str, int] = {}
        for offset, (_, record) in enumerate(place.journal.records):
            if isinstance(record, OwnerClaimed):
                claim = offset
            elif isinstance(record, StateWritten) and record.claim >= claim:
                key = record.run_id.partition(".")[0]
                if record.base == bases.get(key, -1):
                    bases[key] = offset
                    writes[key] += b'"count"' in record.changes
        owner = place.owners[-1]
        states = {key[1:].decode(): decode(value).state for key, value in owner.store.scan(table.SESSION)}
        states.update({s.key: s.state for s in owner.state.sessions.values()})
        for key, expected in writes.items():
            count = from_json(states.get(key, {}).get("count", b"0"))
            if count != expected:
                bad.append(f"session counter: {key} of partition {p} is {count} after {expected} increments")
    return bad


def _counts(world: World, runs: dict[str, Run]) -> list[str]:
    """No two operations have seen the same value of a counter; when all are known, none is missing."""
    bad = []
    for scope, kinds in (("session", ("inc", "update")), ("user", ("user",))):
        values: dict[str, list[int]] = {}
        unknown: set[str] = set()
        for run in runs.values():
            owner = run.key if scope == "session" else run.user
            if run.workflow == "model.guilty" and world.weather.unfit:
                # What it read is not in the log: with other code in charge of the tail it may have been told otherwise.
                unknown.add(owner)
                continue
            found = values.setdefault(owner, [])
            # An attempt that failed has counted too.
            complete = (
                run.status == "completed"
                and not run.attempt
                and _harvest(from_json(run.input)["ops"], from_json(run.output or b"null"), kinds, found)
            )
            if not complete and any(op[0] in kinds for op in programs.flat(from_json(run.input)["ops"])):
                unknown.add(owner)
        for owner, found in values.items():
            found.sort()
            if len(set(found)) != len(found):
                bad.append(f"{scope} counter: two operations of {owner} got the same value: {found}")
            elif owner not in unknown and found != list(range(1, len(found) + 1)):
                bad.append(f"{scope} counter: an increment of {owner} is lost: {found}")
    return bad


def _harvest(ops: programs.Program, results: list[Any], kinds: tuple[str, ...], found: list[int]) -> bool:
    """Collect counters out of a run's output. False when some operation's result is not in it."""
    whole = True
    for op, result in zip(ops, results, strict=True):
        match op:
            case [kind] if kind in kinds:
                found.append(result)
            case ["parallel" | "group" | "locked", *branches] if result != "boom":
                for branch, one in zip(branches, result, strict=True):
                    whole &= _harvest(branch, one, kinds, found)
            case ["race", left, right]:
                _harvest(right if result[0] else left, result[1], kinds, found)
                whole = False
            case ["gather", left, right]:
                whole &= _harvest(left, result[0], kinds, found) and _harvest(right, result[1], kinds, found)
            case ["limit" | "within" | "shield", _, inner] if result != "late":
                whole &= _harvest(inner, result, kinds, found)
            case ["finally", inner, _]:
                whole &= _harvest(inner, result, kinds, found)
            case ["catch", inner, _] if result[0] != "caught":
                whole &= _harvest(inner, result, kinds, found)
            case ["child", *_]:
                pass  # a run of its own
            case _ if any(op[0] in kinds for op in programs.flat([op])):
                whole = False
    return whole


def _signals(world: World, runs: dict[str, Run]) -> list[str]:
    """A signal is taken once."""
    taken = Counter[str]()
    for run in runs.values():
        if run.status == "completed":
            text = (run.output or b"").decode()
            for word in world.told:
                if word.startswith("word"):
                    taken[word] += text.count(f'"{word}"')
    # A child's output is also part of its parent's.
    return [f"signal {word} was taken by {n} runs" for word, n in taken.items() if n > 1 and not _nested(word, runs)]


def _nested(word: str, runs: dict[str, Run]) -> bool:
    """The runs that have it are one and its ancestors, each once."""
    holders = [run for run in runs.values() if f'"{word}"' in (run.output or b"").decode()]
    if any((run.output or b"").decode().count(f'"{word}"') > 1 for run in holders):
        return False
    heads = [run for run in holders if not any(parent.run_id in {r.run_id for r in holders} for parent in run.parents)]
    return len(heads) == 1


# ------------------------------------------------------------------ rebuilding


def step_through(owner: Owner, store: Store, code: Any, first: int, last: int, visit: Any) -> PartitionState:
    """A state from `store`, with the journal applied from `first` to before `last`; in-place calls return at once."""
    state = state_of(store, code)
    for key in list(state.sessions):
        apply_module.resume_queue(state, key)
        at_once(state)
    for offset in range(first, last):
        time, record = owner.place.journal.records[offset]
        apply_module.apply(state, offset, time, record)
        at_once(state)
        visit(state, offset)
    evict(state)
    return state


def at_once(state: PartitionState) -> None:
    while calls := [e for e in state.effects if isinstance(e, Call)]:
        state.effects = []
        for call in calls:
            apply_module.finish_call(state, call.key, call.call.token, drive(call.call.run()))
    state.effects = []
