"""Every example of the page that the project implements, verbatim. Collected where that page is at hand."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from types import ModuleType
from typing import Any

import pytest

from agnt5 import registry
from agnt5.binding import check_input
from agnt5.codec import decode_plain, encode_plain
from agnt5.testing import TestEnvironment
from agnt5.types import EventTrigger, WebhookTrigger

PAGE = Path(__file__).parents[2] / ".." / "shared" / "seed-workflows.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

IMPORTS = "from agnt5 import workflow, WorkflowContext, function, FunctionContext\n"


def supplied(*signatures: str) -> str:
    """Functions that the page calls without defining; each returns its name and its arguments."""
    text = ""
    for signature in signatures:
        name, parameters = signature.rstrip(")").split("(")
        shown = ", ".join(f"{p!r}: {p}" for p in filter(None, parameters.split(", ")))
        text += f"@function\nasync def {name}({parameters}):\n    return {{'id': {name!r}, {shown}}}\n"
    return text


@dataclass
class Example:
    """One block: what it defines, what it needs, and what running it gives."""

    workflow: str | None
    needs: str = ""
    functions: list[str] = field(default_factory=list)
    input: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    needs_block: int | None = None
    body_of: str = ""


EXAMPLES = [
    Example(
        "onboarding_workflow",
        supplied("create_account(email)", "send_welcome_email(account)"),
        input={"user_email": "ada@example.org"},
        output={"status": "done", "account_id": "create_account"},
    ),
    Example(
        "notify_workflow",
        functions=["fetch_user", "send_email"],
        input={"user_id": "u1"},
        output="Sent to Ada",
    ),
    Example(
        "report_workflow",
        supplied(
            "fetch_sales(r)", "fetch_inventory(r)", "fetch_customers(r)", "compile_report(sales, inventory, customers)"
        ),
        input={"report_id": "r1"},
        output={
            "id": "compile_report",
            "sales": {"id": "fetch_sales", "r": "r1"},
            "inventory": {"id": "fetch_inventory", "r": "r1"},
            "customers": {"id": "fetch_customers", "r": "r1"},
        },
    ),
    Example(
        "dashboard_workflow",
        supplied("fetch_revenue()", "fetch_active_users()", "fetch_error_rate()"),
        output={
            "revenue": {"id": "fetch_revenue"},
            "users": {"id": "fetch_active_users"},
            "errors": {"id": "fetch_error_rate"},
        },
    ),
    Example(
        "bulk_processor",
        functions=["process_document"],
        input={"doc_ids": [f"d{n}" for n in range(50)]},
        output={"processed": 50, "failed": 0},
    ),
    Example(
        None,
        needs_block=4,
        body_of="@workflow\nasync def mapped(ctx, doc_ids: list[str]) -> list:\n{body}    return outputs\n",
        functions=["process_document"],
        input={"doc_ids": ["a", "b"]},
        output=[{"doc_id": "a", "status": "processed"}, {"doc_id": "b", "status": "processed"}],
    ),
    Example(
        "follow_up_workflow",
        supplied("send_confirmation(user_id)", "send_follow_up(user_id)"),
        input={"user_id": "u1"},
        output="Follow-up sent.",
    ),
    Example("stateful_workflow", input={"user_id": "u1"}, output={"visits": 1}),
    Example(
        "welcome_workflow",
        supplied("send_welcome_email(user_id)"),
        input={"user_id": "u1"},
        output="Welcome email sent.",
    ),
    Example(
        "payment_workflow",
        supplied("record_payment(amount, currency)"),
        input={"amount": 5, "currency": "eur"},
        output="Payment recorded.",
    ),
    Example(
        "approval_workflow",
        supplied("prepare_order_summary(order_id)", "fulfil_order(order_id)"),
        input={"order_id": "o1"},
        output={"id": "fulfil_order", "order_id": "o1"},
    ),
    Example(
        "order_workflow",
        functions=["validate_order", "charge_customer", "send_confirmation"],
        input={"order_id": "o1"},
        output={"status": "complete", "order_id": "o1", "charge_id": "ch_abc123"},
    ),
]

Load = Callable[[int], ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Load a block as a module of its own: the page defines some names in two ways."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    loaded = []

    def load(number: int) -> ModuleType:
        example = EXAMPLES[number]
        block = BLOCKS[number]
        if example.needs_block is not None:
            block = BLOCKS[example.needs_block] + example.body_of.format(body=indent(block, "    "))
        path = tmp_path / f"seed_example_{number}.py"
        path.write_text(IMPORTS + example.needs + block, encoding="utf-8")
        loaded.append(path.stem)
        return registry.load(str(path))

    yield load
    for name in loaded:
        sys.modules.pop(name, None)


def number_of(workflow: str) -> int:
    return next(number for number, example in enumerate(EXAMPLES) if example.workflow == workflow)


def test_every_block_of_the_page_is_an_example_here() -> None:
    assert len(BLOCKS) == len(EXAMPLES)
    for block, example in zip(BLOCKS, EXAMPLES, strict=True):
        assert example.workflow is None or f"async def {example.workflow}(" in block


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=lambda n: EXAMPLES[n].workflow or "map")
async def test_an_example_of_the_page_registers_and_runs_verbatim(number: int, load: Load) -> None:
    load(number)
    example = EXAMPLES[number]
    name = example.workflow or "mapped"
    assert name in registry.workflows()
    for function in example.functions:
        assert function in registry.functions()
    async with TestEnvironment(answers=["approve"] if name == "approval_workflow" else []) as env:
        handle = await env.start(name, **example.input)
        assert await handle.result() == example.output
        env.replay(handle)


async def test_a_visit_is_counted_across_the_runs_of_a_session(load: Load) -> None:
    load(number_of("stateful_workflow"))
    flow = registry.workflow("stateful_workflow").options(session_id="s1")
    async with TestEnvironment() as env:
        assert [await env.run(flow, "u1") for _ in range(3)] == [{"visits": 1}, {"visits": 2}, {"visits": 3}]


async def test_a_rejected_order_is_not_fulfilled(load: Load) -> None:
    load(number_of("approval_workflow"))
    async with TestEnvironment(mocks={"fulfil_order": AssertionError("must not run")}) as env:
        handle = await env.start("approval_workflow", order_id="o1")
        question = await handle.question()
        assert [option["id"] for option in question.options] == ["approve", "reject"]
        await handle.answer("reject")
        assert await handle.result() == {"status": "rejected"}


async def test_the_event_example_binds_the_value_of_its_topic(load: Load) -> None:
    load(number_of("welcome_workflow"))
    flow = registry.workflow("welcome_workflow")
    (trigger,) = flow.triggers
    assert isinstance(trigger, EventTrigger)
    assert trigger.topic == "user.signed_up"
    payload = check_input(flow, b'{"user_id":"u1","plan":"free"}', strict=False)
    assert payload == b'{"user_id":"u1"}'


async def test_the_webhook_example_binds_the_object_of_stripes_event(load: Load) -> None:
    load(number_of("payment_workflow"))
    flow = registry.workflow("payment_workflow")
    (trigger,) = flow.triggers
    assert isinstance(trigger, WebhookTrigger)
    body: dict[str, Any] = {
        "id": "evt_1",
        "type": "payment_intent.succeeded",
        "data": {"object": {"id": "pi_1", "amount": 2000, "currency": "usd"}},
    }
    assert trigger.accepts(body["type"])
    payload = check_input(flow, encode_plain(trigger.fields(body)), strict=False)
    async with TestEnvironment() as env:
        assert await env.run(flow, **decode_plain(payload)) == "Payment recorded."
