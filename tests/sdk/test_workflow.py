from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from agnt5 import DefinitionError, EncodeError, InputError, WorkflowContext, registry, workflow
from agnt5.binding import MAX_DEPTH, check_input
from agnt5.codec import encode_plain
from agnt5.types import Envelope, cron, event


class Speed(Enum):
    FAST = "fast"
    SLOW = "slow"


class Item(BaseModel):
    sku: str
    quantity: int = 1


@dataclass
class Address:
    city: str
    zip: str | None = None


def order_flow() -> Any:
    @workflow
    async def order_flow(
        ctx: WorkflowContext,
        order_id: str,
        items: list[Item],
        address: Address | None = None,
        speed: Speed = Speed.SLOW,
        due: datetime | None = None,
        raw: bytes = b"",
    ) -> dict[str, Any]:
        return {"order_id": order_id}

    return order_flow


# ------------------------------------------------------------------ binding


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(
        st.builds(Item, sku=st.text(st.characters(exclude_categories=["Cs"])), quantity=st.integers()), max_size=3
    ),
    st.none() | st.builds(Address, st.text(st.characters(exclude_categories=["Cs"]))),
    st.sampled_from(Speed),
    st.none() | st.datetimes(timezones=st.just(UTC)),
    st.binary(),
)
def test_what_a_parent_passes_is_what_a_child_gets(
    order_id: str, items: list[Item], address: Address | None, speed: Speed, due: datetime | None, raw: bytes
) -> None:
    flow = order_flow()
    data = flow.encode_input((order_id, items), {"address": address, "speed": speed, "due": due, "raw": raw})
    for strict in (True, False):
        bound = flow.bind(data, strict=strict)
        assert bound == {
            "order_id": order_id, "items": items, "address": address, "speed": speed, "due": due, "raw": raw
        }  # fmt: skip
        assert check_input(flow, data, strict) == data


def test_arguments_are_bound_by_name_and_coerced_by_their_annotations() -> None:
    bound = order_flow().bind(
        b'{"items":[{"sku":"a","quantity":"2"}],"order_id":"o","address":{"city":"Bonn"},"speed":"fast",'
        b'"due":"2026-01-01T00:00:00Z"}',
        strict=True,
    )
    assert bound == {
        "order_id": "o",
        "items": [Item(sku="a", quantity=2)],
        "address": Address("Bonn"),
        "speed": Speed.FAST,
        "due": datetime(2026, 1, 1, tzinfo=UTC),
    }


def test_each_field_that_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match="workflow 'order_flow'") as refused:
        check_input(order_flow(), b'{"items":[{"quantity":"x"}],"address":3,"speed":"warp","more":1}', strict=True)
    fields = {"order_id", "items.0.sku", "items.0.quantity", "address", "speed", "more"}
    assert set(refused.value.fields) == fields
    assert "order_id, items, address" in refused.value.fields["more"]


def test_unknown_fields_are_refused_when_strict_and_dropped_otherwise() -> None:
    payload = b'{"order_id":"o","unknown":{"a":1},"items":[]}'
    with pytest.raises(InputError) as refused:
        check_input(order_flow(), payload, strict=True)
    assert list(refused.value.fields) == ["unknown"]
    assert check_input(order_flow(), payload, strict=False) == b'{"order_id":"o","items":[]}'


def test_an_input_is_kept_as_it_was_given() -> None:
    given = b'{ "items" : [{"sku":"a"}], "order_id": "5" }'
    assert check_input(order_flow(), given, strict=True) == b'{"items":[{"sku":"a"}],"order_id":"5"}'


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"", "is empty"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"order_id":"\xff"}', "is not JSON"),
        (b'{"order_id":"\\ud800"}', "is not JSON"),
        (b"[]", "not an array"),
        (b"null", "not null"),
        (b'"text"', "not text"),
        (b"3", "not a number"),
        (b'{"order_id":"o","items":[],"due":NaN}', "due.*NaN"),
        (b'{"order_id":"o","items":[],"due":1e999}', "due.*Infinity"),
        (b'{"order_id":"o","items":[],"order_id":"p"}', "order_id.*twice"),
        (b'{"order_id":"o","items":[{"sku":"a","sku":"b"}]}', "sku.*twice"),
        (b'{"order_id":' + b"[" * 101 + b"]" * 101 + b"}", "deep"),
        (b'{"order_id":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
        (b'{"order_id":' + b"9" * 100_000 + b"}", "is not JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_input_is_refused_before_anything_starts(payload: bytes, told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_input(order_flow(), payload, strict=True)


@given(st.integers(1, 2 * MAX_DEPTH), st.booleans())
def test_depth_is_limited_exactly(depth: int, objects: bool) -> None:
    @workflow
    async def anything(ctx: WorkflowContext, value: Any) -> None: ...

    inner = b"1"
    for _ in range(depth):
        inner = b'{"a":' + inner + b"}" if objects else b"[" + inner + b"]"
    payload = b'{"value":' + inner + b"}"
    if depth + 1 <= MAX_DEPTH:
        assert check_input(anything, payload, strict=True) == payload
    else:
        with pytest.raises(InputError, match="deep"):
            check_input(anything, payload, strict=True)


def test_a_parameter_named_event_receives_the_envelope() -> None:
    @workflow
    async def audit(ctx: WorkflowContext, order_id: str = "", event: Any = None) -> None: ...

    envelope = Envelope("orders", 2, 17, "k", {"h": "v"}, 1_700_000_000_000, {"order_id": "o", "event": "e"}).to_json()
    kept = check_input(audit, b'{"order_id":"o","event":"e"}', strict=False, envelope=envelope)
    bound = audit.bind(kept, strict=False, envelope=envelope)
    seen = bound["event"]
    assert bound["order_id"] == "o"
    assert (seen.topic, seen.partition, seen.offset, seen.key) == ("orders", 2, 17, "k")
    assert (seen.headers, seen.timestamp) == ({"h": "v"}, 1_700_000_000_000)
    assert seen.value == {"order_id": "o", "event": "e"}


@pytest.mark.parametrize("payload", [b"", b'"plain text"', b"\x00\xff", b"[1]"])
def test_a_value_that_is_no_object_reaches_a_workflow_that_takes_the_envelope(payload: bytes) -> None:
    @workflow
    async def audit(ctx: WorkflowContext, event: Any) -> None: ...

    envelope = Envelope("raw", value="whatever").to_json()
    kept = check_input(audit, payload, strict=False, envelope=envelope)
    assert audit.bind(kept, strict=False, envelope=envelope)["event"].value == "whatever"
    with pytest.raises(InputError):
        check_input(audit, payload, strict=False)


def test_over_http_event_is_an_ordinary_field() -> None:
    @workflow
    async def audit(ctx: WorkflowContext, event: Envelope) -> None: ...

    @workflow
    async def typed(ctx: WorkflowContext, event: Item) -> None: ...

    assert audit.bind(b'{"event":{"topic":"t","value":1}}', strict=True)["event"] == Envelope("t", value=1)
    assert audit.bind(b'{"event":{"a":1}}', strict=True)["event"] == Envelope(value={"a": 1})
    assert typed.bind(b'{"event":{"sku":"a"}}', strict=True)["event"] == Item(sku="a")
    with pytest.raises(InputError):
        audit.bind(b"{}", strict=True)


def test_open_parameters_take_every_field() -> None:
    @workflow
    async def anything(ctx: WorkflowContext, a: int, **rest: Any) -> None: ...

    for strict in (True, False):
        assert check_input(anything, b'{"a":1,"b":2}', strict) == b'{"a":1,"b":2}'
        assert anything.bind(b'{"a":1,"b":2}', strict=strict) == {"a": 1, "b": 2}
    assert anything.encode_input((1,), {"c": 3}) == b'{"a":1,"c":3}'


def test_names_that_other_libraries_reserve_are_fine_for_parameters() -> None:
    @workflow
    async def odd(
        ctx: WorkflowContext, schema: str, json: int, model_config: str, _private: int, copy: Any, self: int
    ) -> None: ...

    given = {"schema": "s", "json": 1, "model_config": "m", "_private": 2, "copy": 3, "self": 4}
    assert odd.bind(encode_plain(given), strict=True) == given


def test_aliases_and_constraints_of_annotations_hold() -> None:
    @workflow
    async def pay(
        ctx: WorkflowContext, amount: Annotated[int, Field(gt=0)], user: Annotated[str, Field(alias="userId")]
    ) -> None: ...

    assert pay.bind(b'{"amount":3,"userId":"u"}', strict=True) == {"amount": 3, "user": "u"}
    assert check_input(pay, b'{"amount":3,"userId":"u","x":1}', strict=False) == b'{"amount":3,"userId":"u"}'
    with pytest.raises(InputError) as refused:
        pay.bind(b'{"amount":0,"userId":"u"}', strict=True)
    assert list(refused.value.fields) == ["amount"]


def test_the_input_schema_tells_names_types_and_defaults() -> None:
    schema = order_flow().input_schema()
    assert schema["type"] == "object"
    assert schema["required"] == ["order_id", "items"]
    assert schema["properties"]["order_id"]["type"] == "string"
    assert schema["properties"]["speed"]["default"] == "slow"
    assert schema["additionalProperties"] is False
    assert "Item" in schema["$defs"]


def test_a_childs_wrong_call_is_an_input_error() -> None:
    flow = order_flow()
    for args, kwargs in (
        ((), {}),
        (("o", [], 1, 2, 3, 4, 5), {}),
        (("o", []), {"nope": 1}),
        (("o", "x"), {}),
        ((object(), []), {}),
    ):
        with pytest.raises(InputError, match="order_flow"):
            flow.encode_input(args, kwargs)


# ------------------------------------------------------------------ output and options


def test_the_output_passes_its_annotation() -> None:
    @workflow
    async def make(ctx: WorkflowContext) -> Item:
        return Item(sku="a")

    assert make.decode_output(make.encode_output({"sku": "a", "quantity": "3"})) == Item(sku="a", quantity=3)
    with pytest.raises(EncodeError, match=r"output of workflow 'make'.*generator"):
        make.encode_output(n for n in [1])


def test_child_options_are_kept_apart_from_the_definition() -> None:
    flow = order_flow()
    child = flow.options(id="order-7", session_id="s").options(user_id="u", detached=True)
    assert tuple(child.child) == ("order-7", "s", "u", True)
    assert tuple(flow.child) == (None, None, None, False)
    assert (child.name, child.fn) == (flow.name, flow.fn)
    for wrong in ({"id": ""}, {"id": "order/7"}, {"id": "é"}, {"id": "-7"}, {"id": "o" * 201}, {"session_id": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            flow.options(**wrong)
    with pytest.raises(TypeError, match="detached"):
        flow.options(detached="yes")


async def test_a_workflow_is_callable_as_it_is_written() -> None:
    assert await order_flow()(None, "o", []) == {"order_id": "o"}


# ------------------------------------------------------------------ defining


def test_what_the_decorator_is_told_is_kept() -> None:
    @workflow(name="n-1", triggers=[event("t")], cron="0 9 * * *", timeout=timedelta(minutes=1), retries=2)
    async def flow(ctx: WorkflowContext) -> None: ...

    assert (flow.name, flow.timeout_ms, flow.retries) == ("n-1", 60_000, 2)
    assert flow.triggers == (event("t"), cron("0 9 * * *"))
    assert flow.cron == cron("0 9 * * *")
    assert registry.workflow("n-1") is flow


def plain(ctx: WorkflowContext) -> None: ...
async def no_parameter() -> None: ...
async def other_first(user_id: str) -> None: ...
async def star(ctx: WorkflowContext, *items: str) -> None: ...
async def slash(ctx: WorkflowContext, a: int, /) -> None: ...
async def late(ctx: WorkflowContext, a: int, *, ctx2: WorkflowContext) -> None: ...
async def resume(ctx: WorkflowContext) -> None: ...
async def stream(ctx: WorkflowContext) -> Any:
    yield 1


@pytest.mark.parametrize(
    ("fn", "told"),
    [
        (plain, r"async def plain\(ctx"),
        (no_parameter, r"async def no_parameter\(ctx: WorkflowContext"),
        (other_first, "first parameter"),
        (star, r"\*items.*list\["),
        (slash, "'/'"),
        (resume, r"name="),
        (stream, "yields"),
    ],
)
def test_what_cannot_be_a_workflow_is_refused_with_its_place_and_what_to_write(
    fn: Callable[..., Any], told: str
) -> None:
    with pytest.raises(DefinitionError, match=rf"test_workflow.py:\d+.*{told}"):
        workflow(fn)
    assert registry.workflows() == {}


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"name": "resume"}, DefinitionError, "name="),
        ({"name": "a/b"}, DefinitionError, "letters"),
        ({"name": ""}, DefinitionError, "letters"),
        ({"name": 3}, DefinitionError, "text"),
        ({"triggers": event("x")}, TypeError, r"triggers=\["),
        ({"triggers": ["x"]}, TypeError, r"event\("),
        ({"triggers": "orders"}, TypeError, r"triggers=\["),
        ({"cron": "* * *"}, ValueError, "five"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": float("nan")}, ValueError, "timeout"),
        ({"timeout": sys.maxsize}, ValueError, "timeout.*leave it out"),
        ({"timeout": True}, TypeError, "timeout"),
        ({"timeout": "5m"}, TypeError, "timeout"),
        ({"retries": -1}, ValueError, "retries"),
        ({"retries": 1.5}, TypeError, "retries"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_where_it_is_written(options: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        workflow(**options)(no_input)


async def no_input(ctx: WorkflowContext) -> None: ...


def test_an_annotation_that_cannot_be_used_is_found_when_the_module_is_loaded() -> None:
    class Socket: ...

    @workflow
    async def flow(ctx: WorkflowContext, socket: Socket) -> None: ...

    with pytest.raises(DefinitionError, match=r"test_workflow.py:\d+.*'socket'.*Socket"):
        flow.prepare()

    @workflow
    async def other(ctx: WorkflowContext) -> Socket:
        return Socket()

    with pytest.raises(DefinitionError, match=r"test_workflow.py:\d+.*output.*Socket"):
        other.prepare()


def test_fields_that_only_double_star_takes_are_coerced_by_its_annotation() -> None:
    @workflow
    async def flow(ctx: WorkflowContext, name: str, **amounts: Decimal) -> None: ...

    bound = flow.bind(b'{"name": "ann", "first": "1.50", "second": 2}', strict=True)
    assert bound == {"name": "ann", "first": Decimal("1.50"), "second": Decimal(2)}
    assert type(bound["first"]) is Decimal
    with pytest.raises(InputError) as refused:
        flow.bind(b'{"name": "ann", "first": "much", "second": null}', strict=True)
    assert refused.value.fields.keys() == {"first", "second"}

    @workflow
    async def lines(ctx: WorkflowContext, **items: Item) -> None: ...

    assert lines.bind(b'{"a": {"sku": "x"}}', strict=False) == {"a": Item(sku="x")}
    with pytest.raises(InputError) as refused:
        lines.bind(b'{"a": {"quantity": 1}}', strict=True)
    assert refused.value.fields.keys() == {"a.sku"}
