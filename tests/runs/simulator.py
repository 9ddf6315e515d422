"""A simulated world around the real core: owners that come, go and come back, on logs that lose nothing but time.

What is real: records and their bytes, `apply` and all it calls, workflows on the real SDK, rows, checkpoints' contents,
recovery's order of things. What is simulated: the log, the changelog, the clock, the network, and the shell of an owner
(`partition/`), without an event loop: steps run by hand, in-place calls are given their results when the world says so.

Everything is drawn from one seed. A world does not judge itself; `checks.py` does, through `Observer`.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from agnt5.errors import error_info
from agnt5.execute import execute
from agnt5.function import Function
from agnt5.functioncontext import FunctionContext
from agnt5.policies import StepOptions
from agnt5.replay.protocol import InPlaceCall, SignalAsk, StepAsk, UserAsk
from agnt5.workflow import Workflow
from agnt5_engine.records.avro import decode, encode
from agnt5_engine.records.journal import (
    CancelRequested,
    Delivered,
    OwnerClaimed,
    RetryRequested,
    RunParked,
    RunRequested,
    SignalSent,
    StepFailed,
    StepSucceeded,
    TimerFired,
    UserResponded,
)
from agnt5_engine.records.routing import digest, partition_of, routing_key, run_id_for
from agnt5_engine.records.rows import MarkerRow, OutboxRow
from agnt5_engine.runs import apply as core
from agnt5_engine.runs import ask, checkpoint, table
from agnt5_engine.runs.activate import prepare
from agnt5_engine.runs.checkpoint import Row
from agnt5_engine.runs.commit import drop_activation
from agnt5_engine.runs.effects import (
    Abandon,
    Append,
    Call,
    DropTimer,
    Effect,
    Execute,
    InterruptCall,
    Send,
    SetTimer,
    Superseded,
    Verdict,
)
from agnt5_engine.runs.model import Run
from agnt5_engine.runs.outbox import JOURNAL
from agnt5_engine.runs.state import PartitionState
from tests.runs import programs
from tests.runs.storage import Changelog, Journal, evict, state_of

START = 1_700_000_000_000


@dataclass(frozen=True)
class Weather:
    """What may happen in a world, and how often (chances per tick)."""

    kinds: tuple[str, ...] = programs.ALL
    workflows: tuple[str, ...] = ("model.plain", "model.plain", "model.stubborn", "model.limited")
    partitions: int = 2
    runs: int = 5
    ticks: int = 120
    crash: float = 0.03
    zombies: bool = True
    evict: float = 0.1
    foresight: float = 0.0
    local: bool = False  # no function is registered: every step's code is known to its run alone
    checkpoint: float = 0.08
    compact: float = 0.02
    cancels: float = 0.01
    forces: float = 0.003
    retries: float = 0.01
    signals: float = 0.08
    answers: float = 0.08
    repeats: float = 0.02
    unfit: bool = False  # some owners have code that does not fit some runs
    sessions: int = 2
    lost: float = 0.1


class Observer(Protocol):
    """Hears of what happens, in order."""

    def applied(self, owner: Owner, offset: int) -> None: ...

    def executes(self, owner: Owner, run: Run, path: str) -> None: ...


class Code:
    """Which workflows an owner has. With `fits` False: nothing that `model.guilty` runs need."""

    max_payload = 1 << 20

    def __init__(self, fits: bool, unknown: bool = False) -> None:
        self.fits = fits
        self.unknown = unknown
        self.workflows: dict[str, Workflow[Any]] = {
            wf.name: wf for wf in (programs.plain, programs.child, programs.stubborn, programs.limited, programs.guilty)
        }
        self.functions: dict[str, Function[Any]] = {
            fn.name: fn for fn in (programs.work, programs.doomed, programs.quick)
        }
        if not fits:
            del self.workflows["model.guilty"]
            if not unknown:
                self.workflows["model.guilty"] = programs.unfit

    def workflow(self, name: str) -> Workflow[Any] | None:
        return self.workflows.get(name)

    def function(self, run: Run, name: str) -> Function[Any] | None:
        if not self.fits and self.unknown and run.workflow == "model.guilty":
            return None
        return self.functions.get(name)


@dataclass
class Batch:
    """Records on their way into a journal."""

    owner: Owner | None
    partition: int
    records: list[Any]
    acked: Callable[[int, int], None] | None = None  # (first offset, time)


@dataclass
class Request:
    """A run that the world asked for."""

    record: RunRequested
    cancelled: bool = False
    retried: bool = False


class Writing(NamedTuple):
    """A checkpoint on its way."""

    rows: list[Row]
    marker: MarkerRow


@dataclass
class Place:
    """One partition's logs, and who has owned it."""

    journal: Journal = field(default_factory=Journal)
    changelog: Changelog = field(default_factory=Changelog)
    owners: list[Owner] = field(default_factory=list)


class World:
    """Two or more partitions, and all that happens to them."""

    def __init__(self, seed: int, weather: Weather, observer: Observer) -> None:
        self.r = random.Random(seed)
        self.weather = weather
        self.observer = observer
        self.clock = START
        self.places = [Place() for _ in range(weather.partitions)]
        self.net: list[Batch] = []
        self.requests: dict[str, Request] = {}
        self.commands: list[tuple[int, Any]] = []
        self.told: set[str] = set()  # payloads and answers
        self.topics: dict[str, list[OutboxRow]] = {}
        self.words = 0
        self.count: Counter[str] = Counter()
        self.chaos = True
        self.unfit = False

    # ------------------------------------------------------------------ time and logs

    def partition(self, run_id: str) -> int:
        return partition_of(routing_key(run_id), len(self.places))

    def append(self, partition: int, records: list[Any]) -> tuple[int, int]:
        """Returns the first offset and the time. The broker's clock may step back a little."""
        journal = self.places[partition].journal
        time = self.clock - (self.r.randrange(30) if self.r.random() < 0.1 else 0)
        first = len(journal)
        for record in records:
            journal.append(time, record)
        return first, time

    def command(self, run_id: str, record: Any) -> None:
        """From a gateway: lands at once, sometimes twice."""
        p = self.partition(run_id)
        self.commands.append((p, record))
        self.append(p, [record])
        if self.r.random() < self.weather.repeats:
            self.net.append(Batch(None, p, [record]))

    # ------------------------------------------------------------------ what clients do

    def request(self) -> None:
        r, n = self.r, len(self.requests)
        workflow = r.choice(self.weather.workflows)
        ops = programs.program(r, self.weather.kinds)
        if workflow == "model.stubborn":
            ops.insert(r.randint(0, len(ops)), ["boom", r.choice([0, 1, 1, 2, 3])])
        session = f"s{r.randrange(self.weather.sessions)}" if r.random() < 0.8 else None
        user = f"u{r.randrange(2)}" if r.random() < 0.5 else None
        record = RunRequested(
            run_id=run_id_for(session, digest("run", str(n))),
            command_id=f"request{n}",
            workflow=workflow,
            input=programs.plain.encode_input((ops,), {}),
            session_id=session,
            user_id=user,
            trigger=b'{"kind":"http"}',
            parent_run_id=None,
            parent_path=None,
            metadata={},
            envelope=None,
        )
        self.requests[record.run_id] = Request(record)
        self.command(record.run_id, record)

    def word(self) -> str:
        """A new payload or answer."""
        self.words += 1
        word = f"word{self.words}"
        self.told.add(word)
        return word

    def some_run(self) -> str | None:
        return self.r.choice([*self.requests][-4:]) if self.requests else None

    def live_runs(self) -> list[Run]:
        return [run for o in self.current() for run in o.every_run() if not run.ended]

    def current(self) -> list[Owner]:
        return [place.owners[-1] for place in self.places if place.owners]

    def answer(self, run: Run) -> None:
        for path, p in list(run.pending.items()):
            if isinstance(p.ask, UserAsk):
                kind = p.ask.input_type
                given: Any = self.word() if kind == "text" else self.r.choice(["approve", "reject", "maybe"])
                if self.r.random() < 0.1:
                    given = None
                if kind == "approval":
                    self.told.add(given or "")
                data = encode_json(given)
                entry = path if self.r.random() < 0.7 else None
                self.command(run.run_id, UserResponded(run.run_id, f"answer{len(self.commands)}", entry, data, "me"))

    def signal(self, run: Run) -> None:
        names = [p.ask.name for p in run.pending.values() if isinstance(p.ask, SignalAsk)]
        name = self.r.choice(names or ["a", "b"])
        self.send_signal(run.run_id, name)

    def send_signal(self, run_id: str, name: str) -> None:
        payload = encode_json(self.word())
        self.command(run_id, SignalSent(run_id, f"signal{len(self.commands)}", name, payload))

    def clients(self) -> None:
        r, w = self.r, self.weather
        if r.random() < 0.15 and len(self.requests) < w.runs:
            self.request()
        run_id = self.some_run()
        if run_id is None:
            return
        if r.random() < w.cancels:
            self.requests[run_id].cancelled = True
            self.command(run_id, CancelRequested(run_id, f"cancel{len(self.commands)}", False))
        if r.random() < w.forces:
            self.requests[run_id].cancelled = True
            self.command(run_id, CancelRequested(run_id, f"cancel{len(self.commands)}", True))
        if r.random() < w.retries:
            self.requests[run_id].retried = True
            self.command(run_id, RetryRequested(run_id, f"retry{len(self.commands)}"))
        if r.random() < w.repeats:
            self.command(run_id, self.requests[run_id].record)
        if r.random() < w.signals:
            self.send_signal(run_id, r.choice("ab"))
        if r.random() < w.answers and (live := self.live_runs()):
            self.answer(r.choice(live))

    # ------------------------------------------------------------------ ticks

    def take_over(self, partition: int) -> None:
        place = self.places[partition]
        fits = not (self.weather.unfit and self.unfit)
        local = None
        if place.owners and self.r.random() < 0.4:
            local = self.r.choice(place.owners[-3:])
        place.owners.append(Owner(self, partition, Code(fits, unknown=self.r.random() < 0.5), local))
        self.count["take-overs"] += 1

    def deliver(self, i: int) -> None:
        batch = self.net.pop(i)
        owner, r = batch.owner, self.r
        if self.chaos and r.random() < self.weather.lost:
            if owner is not None:
                owner.lost(batch)
            return
        first, time = self.append(batch.partition, batch.records)
        if owner is None or not owner.alive:
            return
        if not owner.paused and (not self.chaos or r.random() < 0.9):
            if batch.acked is not None:
                batch.acked(first, time)
        else:
            self.count["repeated"] += 1
            owner.lost(batch)  # it has landed, but nobody knows

    def tick(self) -> None:
        r, w = self.r, self.weather
        self.clock += r.choice([0, 1, 5, 20, 60])
        if self.chaos:
            self.clients()
            if w.unfit and r.random() < 0.02:
                self.unfit = not self.unfit
                self.take_over(r.randrange(len(self.places)))
            if r.random() < w.crash:
                partition = r.randrange(len(self.places))
                last = self.places[partition].owners[-1]
                if w.zombies and r.random() < 0.6:
                    last.paused = r.random() < 0.7
                else:
                    last.die()
                self.take_over(partition)
            if r.random() < w.compact:
                r.choice(self.places).changelog.compact(r)
            for place in self.places:
                for owner in place.owners:
                    owner.paused = owner.paused and r.random() < 0.97
        while self.net and r.random() < 0.6:
            self.deliver(r.randrange(len(self.net)))
        for place in self.places:
            for owner in place.owners[-3:]:
                if owner.alive and not owner.paused and (not self.chaos or r.random() < 0.8):
                    owner.tick()

    def run(self) -> World:
        for p in range(len(self.places)):
            self.take_over(p)
        for _ in range(self.weather.ticks):
            self.tick()
        self.settle()
        return self

    def settle(self) -> None:
        """The storm is over: zombies finish their damage, then everything is left to run to its end."""
        self.chaos = self.unfit = False
        while len(self.requests) < self.weather.runs:
            self.request()
        for place in self.places:
            for owner in place.owners:
                owner.paused = False
        for _ in range(20):
            self.tick()
        for p, place in enumerate(self.places):
            for owner in place.owners[:-1]:
                owner.die()
            if self.weather.unfit or self.r.random() < 0.5:
                place.owners[-1].die()
                self.take_over(p)
        for _ in range(3000):
            before = (len(self.net), [len(p.journal) for p in self.places], self.words)
            self.tick()
            after = (len(self.net), [len(p.journal) for p in self.places], self.words)
            if after == before and self.idle() and not self.nudge():
                return

    def close(self) -> None:
        for place in self.places:
            for owner in place.owners:
                owner.die()

    def idle(self) -> bool:
        return not self.net and all(o.idle() for o in self.current())

    def nudge(self) -> bool:
        """Nothing moves: let time pass to the next alarm, else say what the runs wait to hear. False when neither."""
        dues = [due for o in self.current() if (due := o.next_alarm()) is not None]
        if dues:
            self.clock = max(self.clock + 1, min(dues) + 31)
            return True
        waiting = [
            (run, p)
            for run in self.live_runs()
            for p in run.pending.values()
            if isinstance(p.ask, UserAsk | SignalAsk) and run.status != "paused"
        ]
        if not waiting:
            return False
        run, p = waiting[0]
        self.count["nudges"] += 1
        if isinstance(p.ask, SignalAsk):
            self.send_signal(run.run_id, p.ask.name)
        else:
            self.answer(run)
        return True


def encode_json(value: Any) -> bytes:
    return programs.plain.codec.encode([value])[1:-1]


# ------------------------------------------------------------------ the shell of an owner


class Owner:
    """One processor's hold on one partition, from recovery to its death; as `partition.owner`, by hand."""

    def __init__(self, world: World, partition: int, code: Code, local: Owner | None) -> None:
        self.world, self.partition, self.code = world, partition, code
        self.place = world.places[partition]
        self.alive, self.paused, self.live = True, False, False
        self.skew = world.r.randint(-40, 40)
        self.epoch = self.place.changelog.fence()
        self.store = (
            self.place.changelog.restore(local.store, local.changelog_position)
            if local is not None
            else self.place.changelog.restore()
        )
        self.changelog_position = self.place.changelog.end
        marker = self.store.marker
        self.unclean = marker is not None and not marker.clean
        self.state = state_of(self.store, code)
        self.buffer: list[Any] = []
        self.flying = 0
        self.early: dict[int, tuple[int, Any]] = {}
        self.steps: dict[tuple[str, str], int] = {}
        self.later: list[tuple[int, str, str]] = []
        self.timers: list[tuple[int, str, str]] = []
        self.sending: set[str] = set()
        self.calls: deque[tuple[str, InPlaceCall]] = deque()
        self.interrupted: list[tuple[str, InPlaceCall]] = []
        self.writing: Writing | None = None
        self.written = -2
        self.verdicts: Counter[str] = Counter()
        self.heard: Counter[str] = Counter()  # commands applied while live
        self.replayed: Counter[str] = Counter()  # commands applied while catching up
        for key, session in list(self.state.sessions.items()):
            for held in session.queue:
                if held.value[:1] != b"\0" and (command := getattr(decode(held.value), "command_id", None)) is not None:
                    self.replayed[command] += 1
            core.resume_queue(self.state, key)
        self.claim, _ = world.append(partition, [OwnerClaimed(f"owner{len(self.place.owners)}", "1")])
        if world.r.random() < 0.5:
            self.go_live(self.claim + 1)
        else:  # it applies the journal to its end a little at a time; others go on meanwhile
            self.target = self.claim + 1

    def go_live(self, end: int) -> None:
        self.fetch(end - self.state.applied - 1)
        if not self.alive:
            return
        self.live = True
        self.state.effects = [e for e in self.state.effects if isinstance(e, Call | InterruptCall)]
        ask.ask_everything(self.state, unclean=self.unclean)
        self.act()

    def die(self) -> None:
        self.alive = False
        evict(self.state)

    # ------------------------------------------------------------------ records in

    def apply(self, offset: int, time: int, record: Any) -> None:
        command = getattr(record, "command_id", None)
        if command is not None:
            (self.heard if self.live else self.replayed)[command] += 1
        core.apply(self.state, offset, time, record)
        if not self.live:
            self.state.effects = [e for e in self.state.effects if isinstance(e, Call | InterruptCall)]
        self.world.observer.applied(self, offset)

    def fetch(self, most: int) -> None:
        records = self.place.journal.records
        for _ in range(most):
            offset = self.state.applied + 1
            if offset >= len(records) or not self.alive:
                return
            self.apply(offset, *records[offset])
            if self.live:
                self.apply_early()
                self.act()

    def apply_early(self) -> None:
        while self.alive and (found := self.early.pop(self.state.applied + 1, None)) is not None:
            self.apply(self.state.applied + 1, *found)

    def acked(self, records: list[Any], first: int, time: int) -> None:
        self.flying -= 1
        for offset, record in enumerate(records, first):
            if offset == self.state.applied + 1:
                self.apply(offset, time, record)
            elif offset > self.state.applied:
                self.early[offset] = (time, record)
        self.apply_early()
        self.act()

    # ------------------------------------------------------------------ effects

    def act(self) -> None:
        while self.state.effects and self.alive:
            effects, self.state.effects = self.state.effects, []
            for e in effects:
                self.do(e)

    def do(self, e: Effect) -> None:
        match e:
            case Execute(run_id, path):
                self.execute(run_id, path)
            case Append(_, record):
                self.buffer.append(record)
            case Send(id):
                if id not in self.sending:
                    self.sending.add(id)
            case SetTimer(due, run_id, path):
                heapq.heappush(self.timers, (due, run_id, path))
            case DropTimer(due, run_id, path):
                self.timers = [timer for timer in self.timers if timer != (due, run_id, path)]
                heapq.heapify(self.timers)
            case Verdict(command_id):
                self.verdicts[command_id] += 1
            case Abandon(run_id, path, _):
                self.steps.pop((run_id, path), None)
            case Call(key, _, call):
                self.calls.append((key, call))
            case InterruptCall(key):
                self.interrupted += [c for c in self.calls if c[0] == key]
                self.calls = deque(c for c in self.calls if c[0] != key)
            case Superseded(claim):
                if claim != self.claim:
                    self.die()

    def execute(self, run_id: str, path: str) -> None:
        if (run_id, path) in self.steps:
            return
        run = self.state.run(run_id)
        if run is None or run.status == "paused" or (p := run.pending.get(path)) is None:
            return
        assert isinstance(p.ask, StepAsk)
        if p.retry_at is not None and p.retry_at > self.now():
            heapq.heappush(self.later, (p.retry_at, run_id, path))
            return
        if p.ask.function is None and not core.revive(self.state, run):
            self.act()
            heapq.heappush(self.later, (self.now() + 50, run_id, path))
            return
        self.world.observer.executes(self, run, path)
        self.steps[run_id, path] = p.attempt
        run.executing += 1

    def now(self) -> int:
        return self.world.clock + self.skew

    # ------------------------------------------------------------------ a tick

    def tick(self) -> None:
        r, w = self.world.r, self.world.weather
        if not self.live:
            self.fetch(r.randint(1, 8))
            if self.state.applied + 1 >= self.target:
                self.go_live(self.target)
            return
        newest = self.place.owners[-1] is self
        if newest or r.random() < 0.3:
            self.fetch(r.randint(0, 6))
        if self.alive and self.steps and r.random() < 0.8:
            self.finish_step(r.choice(list(self.steps)))
        for _ in range(2):
            if self.alive and self.calls and r.random() < 0.6:
                self.finish_call()
        while self.alive and self.interrupted and r.random() < 0.8:
            key, call = self.interrupted.pop()
            core.finish_call(self.state, key, call.token, None, TimeoutError("interrupted"))
            self.act()
        self.alarms()
        if self.alive and self.sending and r.random() < 0.8:
            self.send()
        if self.alive and self.buffer and self.flying < 2 and r.random() < 0.8:
            self.flush()
        if r.random() < w.evict:
            self.evict()
        if self.writing is not None and r.random() < 0.5:
            self.write()
        elif self.writing is None and r.random() < w.checkpoint:
            self.checkpoint()

    def alarms(self) -> None:
        now = self.now()
        while self.alive and self.timers and self.timers[0][0] <= now:
            _, run_id, path = heapq.heappop(self.timers)
            run = self.state.runs.get(run_id)
            if run is None or path in run.pending:
                self.buffer.append(TimerFired(run_id, path, self.claim))
        while self.alive and self.later and self.later[0][0] <= now:
            _, run_id, path = heapq.heappop(self.later)
            self.execute(run_id, path)
            self.act()

    def next_alarm(self) -> int | None:
        dues = [heap[0][0] for heap in (self.timers, self.later) if heap]
        return min(dues) - self.skew if dues else None

    def idle(self) -> bool:
        return (
            self.live
            and not (self.buffer or self.steps or self.sending or self.calls or self.interrupted or self.writing)
            and self.state.applied + 1 == len(self.place.journal)
        )

    def finish_step(self, key: tuple[str, str]) -> None:
        run_id, path = key
        number = self.steps.pop(key)
        run = self.state.run(run_id)
        if run is None:
            return
        run.executing = max(run.executing - 1, 0)
        p = run.pending.get(path)
        if p is None or not isinstance(p.ask, StepAsk):
            return
        record = attempt(self, run, p.ask, number)
        if record is not None:
            self.buffer.append(record)
            self.world.count["executions"] += 1
        if p.attempt != number:  # asked for while this one ran
            self.execute(run_id, path)

    def finish_call(self) -> None:
        r = self.world.r
        i = r.randrange(len(self.calls))
        key, call = self.calls[i]
        del self.calls[i]
        result = drive(call.run())
        core.finish_call(self.state, key, call.token, result)
        self.act()

    def flush(self) -> None:
        r = self.world.r
        records, self.buffer = self.buffer[:20], self.buffer[20:]
        if self.world.chaos and r.random() < 0.2:
            r.shuffle(records)
        self.flying += 1
        self.world.net.append(
            Batch(self, self.partition, records, lambda first, time: self.acked(records, first, time))
        )

    def lost(self, batch: Batch) -> None:
        """Its fate is unknown: again."""
        self.world.net.append(batch)

    def send(self) -> None:
        """One output on its way; Delivered follows its ack."""
        world = self.world
        id = world.r.choice(sorted(self.sending))
        self.sending.discard(id)
        row = self.state.outbox.get(id)
        if row is None:
            return
        if row.topic == JOURNAL:
            assert row.key is not None
            partition = partition_of(row.key.decode(), len(world.places))
            self.flying += 1
            world.net.append(Batch(self, partition, [decode(row.value)], lambda first, time: self.delivered(id)))
        else:
            world.topics.setdefault(row.topic, []).append(row)
            if not world.chaos or world.r.random() < 0.9:
                self.buffer.append(Delivered([id], self.claim))
            else:
                self.sending.add(id)

    def delivered(self, id: str) -> None:
        self.flying -= 1
        self.buffer.append(Delivered([id], self.claim))

    # ------------------------------------------------------------------ memory and checkpoints

    def every_run(self) -> list[Run]:
        """In memory or not; looking changes nothing."""
        found = dict(self.state.runs)
        for key, _ in self.store.scan(table.RUN):
            run_id = key[1:].decode()
            if run_id not in found and (run := self.state._load(run_id)) is not None:
                found[run_id] = run
        return list(found.values())

    def evict(self) -> None:
        """Some runs' code leaves memory, and some of it is back before it is wanted."""
        foresight = self.world.weather.foresight
        for run in self.state.runs.values():
            session = self.state.sessions.get(run.key)
            if self.world.r.random() < 0.5 and not run.executing and (session is None or session.turn is None):
                drop_activation(run)
            if foresight and self.world.r.random() < foresight:
                prepare(self.state, run)

    def checkpoint(self) -> None:
        state = self.state
        if state.applied == self.written:
            return
        rows = checkpoint.changes(state)
        self.writing = Writing(rows, marker_of(state))

    def write(self) -> None:
        assert self.writing is not None
        rows, marker = self.writing
        changelog, r = self.place.changelog, self.world.r
        if changelog.epoch != self.epoch:
            self.die()  # fenced
            return
        primary = [row for row in rows if row.key[:1] not in table.DERIVED_FAMILIES]
        changelog.write([*primary, Row(table.MARKER, encode(marker))])
        if self.world.chaos and r.random() < 0.1:
            return  # it has landed, but nobody knows: once more
        self.writing = None
        self.changelog_position = changelog.end
        self.store.write([*rows, Row(table.MARKER, encode(marker))])
        self.written = marker.applied
        checkpoint.forget_clean(self.state, keep=r.choice([0, 1, 10]))


def marker_of(state: PartitionState) -> MarkerRow:
    return MarkerRow(
        applied=state.applied, claim=state.claim, now=state.now, cluster_id="c", partitions=1, clean=False,
        takeovers=0, suspect=None, deaths=0, code_version="1",
    )  # fmt: skip


# ------------------------------------------------------------------ running user code by hand


def drive(awaitable: Any) -> Any:
    """Run a coroutine that waits for nothing."""
    try:
        awaitable.__await__().send(None)
    except StopIteration as e:
        return e.value
    raise AssertionError("the simulated functions wait for nothing")


def attempt(owner: Owner, run: Run, step: StepAsk, number: int) -> Any:
    """One attempt of a step, as `partition.steps` does it."""
    ctx = FunctionContext(
        name=step.name, run_id=run.run_id, session_id=run.session, user_id=run.user, workflow_name=run.workflow,
        attempt=number, idempotency_key=f"{run.run_id}/{step.path}", metadata=run.metadata,
    )  # fmt: skip
    options, claim = StepOptions(), owner.state.claim
    try:
        if step.function is None:
            if run.activation is None or run.activation.replaying:
                owner.execute(run.run_id, step.path)
                return None
            result = drive(run.activation.callable(step.path)(ctx))
        else:
            function = owner.code.function(run, step.function)
            if function is None:
                return RunParked(run.run_id, step.path, "unknown_function", f"no function {step.function!r}", claim)
            options = function.policy if step.options is None else StepOptions.from_json(step.options)
            result = drive(execute(function, step.input, ctx, options))
        return StepSucceeded(run.run_id, step.path, number, result, claim)
    except Exception as e:
        info = error_info(e, step.name, number + 1)
        retry_at = None
        if options.retryable(e, number + 1):
            retry_at = owner.now() + options.delay_ms(number + 1, owner.world.r.random())
        return StepFailed(run.run_id, step.path, number, info.type, info.message, "", retry_at, claim)
