"""Records into requests: what binds to what, and what becomes a dead letter."""

from __future__ import annotations

import json
import struct
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import fastavro
import httpx
import pytest
from pydantic import AfterValidator, BaseModel

from agnt5 import registry
from agnt5.types import Envelope, event
from agnt5.workflow import workflow
from agnt5_engine.records.avro import encode
from agnt5_engine.records.journal import RunOutcome, SignalSent
from agnt5_engine.serving.local import request_run_id
from agnt5_engine.transport.base import Record, TopicPartition
from agnt5_engine.triggers.events import Decoded, EventTriggers
from agnt5_engine.triggers.schema_registry import SchemaRegistry

from .engine import processor, runs_of, until

ORDERS = TopicPartition("orders", 3)


def record(value: Any, *, key: bytes | None = None, headers: dict[str, bytes] | None = None) -> Record:
    data = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    return Record(7, 1_700_000_000_000, key, data, tuple((headers or {}).items()))


def decoded(value: Any, source: TopicPartition = ORDERS, **more: Any) -> Decoded:
    return EventTriggers(registry.workflows()).requests(source, record(value, **more))


def reasons(found: Decoded) -> list[tuple[str | None, str]]:
    return [(letter.workflow, letter.reason) for letter in found.letters]


def test_an_object_binds_by_name_and_unknown_fields_are_left_out() -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str, amount: float = 1.0) -> None: ...

    found = decoded({"order_id": "o-1", "amount": 2, "noise": [1]})

    assert not found.letters
    (request,) = found.requests
    assert json.loads(request.input) == {"order_id": "o-1", "amount": 2}
    assert request.trigger == {"kind": "event", "topic": "orders", "partition": 3, "offset": 7}
    assert request.dedupe == "orders/3/7@1700000000000"
    assert request.envelope is None


def test_a_record_names_its_run_and_another_at_its_offset_in_a_topic_made_anew_names_another() -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str) -> None: ...

    triggers = EventTriggers(registry.workflows())
    first, again, anew = (
        triggers.requests(ORDERS, record({"order_id": "o-1"})._replace(time=time)).requests[0]
        for time in (1_700_000_000_000, 1_700_000_000_000, 1_700_000_000_001)
    )
    assert request_run_id(first) == request_run_id(again) != request_run_id(anew)


def test_an_event_id_in_the_header_names_the_run() -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str) -> None: ...

    (request,) = decoded({"order_id": "o-1"}, headers={"agnt5-event-id": b"e-9"}).requests

    assert request.dedupe == "e-9"
    assert request.trigger["event_id"] == "e-9"


def test_a_parameter_named_event_receives_the_envelope() -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, event: Envelope, order_id: str) -> None: ...

    headers = {"trace": b"t1", "blob": b"\xff"}
    (request,) = decoded({"order_id": "o-1", "x": 1}, key=b"k", headers=headers).requests

    arguments = order.bind(request.input, strict=False, envelope=request.envelope)
    assert arguments["order_id"] == "o-1"
    assert arguments["event"] == Envelope(
        "orders", 3, 7, "k", {"trace": "t1", "blob": "base64:/w=="}, 1_700_000_000_000, {"order_id": "o-1", "x": 1}
    )


@pytest.mark.parametrize(("value", "seen"), [("plain", "plain"), ([1, 2], [1, 2]), (b"not json", "not json")])
def test_the_envelope_takes_values_that_are_no_objects(value: Any, seen: Any) -> None:
    @workflow(triggers=[event("orders")])
    async def anything(ctx: Any, event: Any) -> None: ...

    (request,) = decoded(value).requests

    assert anything.bind(request.input, strict=False, envelope=request.envelope)["event"].value == seen


def test_a_value_that_is_no_object_binds_to_the_only_parameter() -> None:
    @workflow(triggers=[event("orders")])
    async def one(ctx: Any, order_id: str) -> None: ...

    @workflow(triggers=[event("orders")])
    async def two(ctx: Any, order_id: str, amount: float = 0) -> None: ...

    found = decoded("o-1")

    assert [(r.workflow, json.loads(r.input)) for r in found.requests] == [("one", {"order_id": "o-1"})]
    assert reasons(found) == [("two", "unbound")]


def test_text_that_says_so_is_a_plain_string_and_other_text_is_no_value() -> None:
    @workflow(triggers=[event("orders")])
    async def one(ctx: Any, order_id: str) -> None: ...

    (request,) = decoded(b"o-1", headers={"Content-Type": b"text/plain; charset=utf-8"}).requests
    assert json.loads(request.input) == {"order_id": "o-1"}

    found = decoded(b'{"order_id": "o-1"')
    assert not found.requests
    assert reasons(found) == [("one", "undecodable")]
    assert "not JSON" in found.letters[0].detail


def test_bytes_reach_a_workflow_whose_one_parameter_is_bytes() -> None:
    @workflow(triggers=[event("orders")])
    async def raw(ctx: Any, data: bytes) -> None: ...

    (request,) = decoded(b"\x89PNG\xff\xfe").requests

    assert raw.bind(request.input, strict=False)["data"] == b"\x89PNG\xff\xfe"


def test_one_workflow_that_cannot_take_an_event_does_not_hold_up_the_others() -> None:
    class Order(BaseModel):
        id: int

    @workflow(triggers=[event("orders")])
    async def strict(ctx: Any, order: Order) -> None: ...

    @workflow(triggers=[event("orders", filter=lambda value: value["missing"])])
    async def careless(ctx: Any) -> None: ...

    @workflow(triggers=[event("orders", session="customer.id")])
    async def sessions(ctx: Any) -> None: ...

    @workflow(triggers=[event("orders")])
    async def fine(ctx: Any) -> None: ...

    found = decoded({"order": {"id": "seven"}})

    assert [r.workflow for r in found.requests] == ["fine"]
    assert reasons(found) == [("strict", "unbound"), ("careless", "trigger_failed"), ("sessions", "unbound")]
    assert "order.id" in found.letters[0].detail
    assert "KeyError" in found.letters[1].detail
    assert "customer.id" in found.letters[2].detail


def test_filters_choose_and_several_triggers_of_a_workflow_start_it_once() -> None:
    @workflow(triggers=[event("orders", filter=lambda v: v["total"] > 10), event("orders", filter=lambda v: v["vip"])])
    async def order(ctx: Any) -> None: ...

    assert len(decoded({"total": 20, "vip": True}).requests) == 1
    assert len(decoded({"total": 5, "vip": True}).requests) == 1
    found = decoded({"total": 5, "vip": False})
    assert found == Decoded([], [])


def test_sessions_and_users_come_from_fields_or_callables() -> None:
    @workflow(triggers=[event("orders", session="customer_id", user=lambda value: value["users"][0])])
    async def order(ctx: Any) -> None: ...

    (request,) = decoded({"customer_id": 42, "users": ["ada"]}).requests

    assert (request.session_id, request.user_id) == ("42", "ada")


def test_an_input_larger_than_allowed_is_put_aside() -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, text: str) -> None: ...

    triggers = EventTriggers(registry.workflows(), max_payload=1024)
    found = triggers.requests(ORDERS, record({"text": "x" * 2000}))

    assert reasons(found) == [("order", "too_large")]
    assert "AGNT5_MAX_PAYLOAD_BYTES" in found.letters[0].detail


@pytest.mark.parametrize("field", ["session", "user", "event_id"])
def test_names_that_the_journal_has_no_room_for_are_put_aside(field: str) -> None:
    @workflow(
        triggers=[event("orders", session="customer", user="customer")] if field != "event_id" else [event("orders")]
    )
    async def order(ctx: Any, text: str) -> None: ...

    long = "\u00e9" * 500_000
    value = {"text": "x" * 500_000, "customer": long if field != "event_id" else "c"}
    headers = {"agnt5-event-id": long.encode()} if field == "event_id" else {}
    found = decoded(value, headers=headers)

    assert reasons(found) == [("order", "too_large")]


def test_a_workflows_own_validator_that_breaks_is_a_dead_letter() -> None:
    def in_stock(sku: str) -> str:
        return {"a": "shelf 1"}[sku]

    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, sku: Annotated[str, AfterValidator(in_stock)]) -> None: ...

    assert len(decoded({"sku": "a"}).requests) == 1
    found = decoded({"sku": "b"})

    assert reasons(found) == [("order", "trigger_failed")]
    assert "KeyError: 'b'" in found.letters[0].detail


async def test_an_event_whose_filter_raises_what_is_no_exception_is_put_aside(tmp_path: Path) -> None:
    class Panic(BaseException):
        """What libraries in Rust raise."""

    def wanted(value: Any) -> bool:
        if value["n"] == 1:
            raise Panic("it broke")
        return True

    @workflow(triggers=[event("orders", filter=wanted)])
    async def order(ctx: Any, n: int) -> int:
        return n

    async with processor(tmp_path, partitions=1) as engine:
        for n in range(3):
            await engine.publish("orders", b'{"n": %d}' % n, b"k", ())
        assert [run.output for run in await runs_of(engine, "order", 2)] == [0, 2]
        (dead,) = await until(engine.dead_letters)
    assert (dead.reason, dead.value) == ("trigger_failed", {"n": 1})
    assert "Panic: it broke" in dead.detail


def test_headers_without_a_value_are_as_good_as_none() -> None:
    @workflow(triggers=[event("orders")])
    async def seen(ctx: Any, event: Envelope) -> None: ...

    headers: Any = {"content-type": None, "agnt5-event-id": None}
    (request,) = decoded(b"no JSON", headers=headers).requests

    assert request.dedupe == "orders/3/7@1700000000000"
    assert request.envelope is not None
    assert json.loads(request.envelope)["headers"] == {"content-type": None, "agnt5-event-id": None}


@pytest.mark.parametrize(
    "value", [b'{"n": NaN}', b'{"n": 1e400}', b"[" * 500 + b"]" * 500, b'{"n":' * 150 + b"1" + b"}" * 150]
)
def test_hostile_json_is_a_dead_letter(value: bytes) -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, n: Any) -> None: ...

    found = decoded(value)

    assert not found.requests
    assert len(found.letters) == 1


def test_a_tombstone_is_null() -> None:
    @workflow(triggers=[event("orders")])
    async def optional(ctx: Any, order_id: str | None) -> None: ...

    @workflow(triggers=[event("orders")])
    async def needed(ctx: Any, order_id: str) -> None: ...

    found = decoded(None)

    assert [(r.workflow, r.input) for r in found.requests] == [("optional", b'{"order_id":null}')]
    assert reasons(found) == [("needed", "unbound")]


def test_a_run_that_ended_can_trigger_another_workflow_but_never_itself() -> None:
    @workflow(triggers=[event("agnt5.outcomes")])
    async def report(ctx: Any, run_id: str, status: str, output: Any) -> None: ...

    def outcome(workflow: str) -> bytes:
        return encode(
            RunOutcome("r1", workflow, "completed", b'{"a":1}', b'{"b":2}', None, None, "s", "u", 1, 2)
        )  # fmt: skip

    source = TopicPartition("agnt5.outcomes", 0)
    (request,) = decoded(outcome("order"), source).requests
    assert json.loads(request.input) == {"run_id": "r1", "status": "completed", "output": {"b": 2}}
    assert decoded(outcome("report"), source) == Decoded([], [])
    assert reasons(decoded(encode(SignalSent("r", "c", "n", b"1")), source)) == [(None, "undecodable")]


# ------------------------------------------------------------------ schema registry

LINE = {"type": "record", "name": "Line", "namespace": "shop", "fields": [{"name": "sku", "type": "string"}]}
ORDER = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "order_id", "type": "string"},
        {"name": "total", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "lines", "type": {"type": "array", "items": "shop.Line"}},
    ],
}


TREE = {
    "type": "record",
    "name": "Tree",
    "namespace": "shop",
    "fields": [{"name": "order_id", "type": "string"}, {"name": "parts", "type": {"type": "array", "items": "Tree"}}],
}


class Registry(httpx.MockTransport):
    """A schema registry that is away for the first `away` requests."""

    def __init__(self, away: int = 0) -> None:
        super().__init__(self.answer)
        self.away = away
        self.asked: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        if self.away:
            self.away -= 1
            return httpx.Response(503)
        match request.url.path:
            case "/schemas/ids/5":
                references = [{"name": "shop.Line", "subject": "lines", "version": 2}]
                return httpx.Response(200, json={"schema": json.dumps(ORDER), "references": references})
            case "/schemas/ids/6":
                return httpx.Response(200, json={"schema": "{}", "schemaType": "JSON"})
            case "/schemas/ids/7":
                return httpx.Response(200, json={"schema": "message A {}", "schemaType": "PROTOBUF"})
            case "/schemas/ids/8":
                references = [{"name": "shop.Odd", "subject": "odd", "version": 1}]
                return httpx.Response(200, json={"schema": json.dumps(ORDER), "references": references})
            case "/schemas/ids/10":
                return httpx.Response(200, json={"schema": json.dumps(TREE)})
            case "/schemas/ids/9":
                return httpx.Response(200, json={"schema": json.dumps(LINE), "references": None})
            case "/subjects/odd/versions/1":
                return httpx.Response(200, json={"schema": '{"type": "record", "name": "shop.Odd", "fields": "?"}'})
            case "/subjects/lines/versions/2":
                return httpx.Response(200, json={"schema": json.dumps(LINE)})
            case _:
                return httpx.Response(404, json={"error_code": 40403})


def wire(schema_id: int, body: bytes) -> bytes:
    return b"\0" + struct.pack(">I", schema_id) + body


def avro_order() -> bytes:
    from decimal import Decimal

    named: dict[str, Any] = {}
    fastavro.parse_schema(LINE, named)
    out = BytesIO()
    value = {"order_id": "o-1", "total": Decimal("12.50"), "lines": [{"sku": "a"}]}
    fastavro.schemaless_writer(out, fastavro.parse_schema(ORDER, named), value)
    return wire(5, out.getvalue())


async def test_avro_events_bind_by_the_registrys_schema_and_wait_while_it_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str, total: float, lines: list[dict[str, str]]) -> None: ...

    transport = Registry(away=1)
    registered = SchemaRegistry("http://registry/", transport)
    triggers = EventTriggers(registry.workflows(), registered)
    records = [record(avro_order()), record(avro_order()), record(wire(6, b'{"order_id":"j","total":1,"lines":[]}'))]

    await triggers.prepare(records)
    found = [triggers.requests(ORDERS, r) for r in records]
    await registered.close()

    assert [json.loads(f.requests[0].input)["order_id"] for f in found] == ["o-1", "o-1", "j"]
    assert order.bind(found[0].requests[0].input, strict=False)["total"] == 12.5
    assert transport.asked.count("/schemas/ids/5") == 2  # once while it was away


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (wire(5, b"\x06"), "read 0"),
        (wire(7, b"x"), "PROTOBUF"),
        (wire(404, b"x"), "no schema 404"),
        (wire(8, b"x"), "schema 8 cannot be used"),
        (wire(9, b"\x06"), "read 0"),
    ],
)
async def test_what_a_registry_cannot_explain_is_one_dead_letter(value: bytes, told: str) -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str) -> None: ...

    registered = SchemaRegistry("http://registry", Registry())
    triggers = EventTriggers(registry.workflows(), registered)
    await triggers.prepare([record(value), record(value)])
    both = [triggers.requests(ORDERS, record(value)) for _ in range(2)]
    await registered.close()

    for found in both:
        assert reasons(found) == [(None, "undecodable")]
        assert told in found.letters[0].detail


def tree(depth: int) -> bytes:
    return wire(10, b"\x02a" + b"\x02\x02a" * depth + b"\0" * (depth + 1))


async def test_a_value_that_is_nested_too_deep_is_a_dead_letter_also_where_its_schema_holds_itself() -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str, parts: list[Any]) -> None: ...

    registered = SchemaRegistry("http://registry", Registry())
    triggers = EventTriggers(registry.workflows(), registered)
    await triggers.prepare([record(tree(1))])
    shallow, deep = (triggers.requests(ORDERS, record(tree(depth))) for depth in (1, 100_000))
    await registered.close()

    assert [json.loads(r.input) for r in shallow.requests] == [
        {"order_id": "a", "parts": [{"order_id": "a", "parts": []}]}
    ]
    assert reasons(deep) == [(None, "undecodable")]


async def test_an_answer_that_is_no_registrys_is_asked_for_again() -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str) -> None: ...

    answers = [httpx.Response(200, json=["who are you?"]), httpx.Response(200, json={"schema": '"string"'})]
    registered = SchemaRegistry("http://registry", httpx.MockTransport(lambda request: answers.pop(0)))
    triggers = EventTriggers(registry.workflows(), registered)
    value = record(wire(5, b"\x06o-1"))
    await triggers.prepare([value])
    (request,) = triggers.requests(ORDERS, value).requests
    await registered.close()

    assert request.input == b'{"order_id":"o-1"}'


def test_wire_format_without_a_registry_names_the_setting() -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str) -> None: ...

    found = decoded(wire(5, b"x"))

    assert "AGNT5_SCHEMA_REGISTRY_URL" in found.letters[0].detail
