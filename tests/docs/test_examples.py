"""Each example does what its first lines say, and the project that `agnt5 init` writes passes its own tests."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from agnt5.testing import TestEnvironment

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TEMPLATE = ROOT / "engine" / "agnt5_engine" / "cli" / "template"


@pytest.fixture
def example() -> Callable[[str], ModuleType]:
    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Postponed annotations are resolved through it.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


async def test_an_order_is_charged_under_its_idempotency_key_and_confirmed(
    example: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_LEDGER", str(tmp_path / "ledger"))
    orders = example("orders")
    async with TestEnvironment() as env:
        output = await env.run(orders.order_workflow, order_id="A-1", amount=89.99)
        refused = await env.run(orders.order_workflow, order_id="A-2", amount=0)
    assert output["status"] == "complete"
    assert refused == {"status": "invalid", "order_id": "A-2"}
    calls = [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]
    assert [(call["call"], call["order_id"]) for call in calls] == [("charge", "A-1"), ("confirm", "A-1")]
    assert calls[0]["idempotency_key"] != calls[1]["idempotency_key"]
    assert calls[1]["charge_id"] == output["charge_id"]


async def test_a_large_refund_waits_for_a_person(example: Callable[[str], ModuleType]) -> None:
    approvals = example("approvals")
    async with TestEnvironment() as env:
        small = await env.run(approvals.refund_workflow, order_id="A-1", amount=5)
        expired = await env.run(approvals.refund_workflow, order_id="A-2", amount=500)
        asked = await env.start(approvals.refund_workflow, order_id="A-3", amount=500)
        await asked.answer("reject")
        rejected = await asked.result()
    assert small["status"] == "refunded"
    assert expired["status"] == "expired"
    assert rejected["status"] == "rejected"


async def test_a_user_who_stays_away_is_reminded(example: Callable[[str], ModuleType]) -> None:
    signup = example("signup")
    async with TestEnvironment() as env:
        output = await env.run(signup.signup_workflow, user_id="u-1", email="ada@example.org")
        back = await env.start(signup.signup_workflow, user_id="u-2", email="grace@example.org")
        await back.signal("came_back")
        assert (await back.result())["reminded"] is False
    assert output == {"user_id": "u-1", "reminded": True, "sign_ups": 1}


async def test_a_payment_is_recorded(example: Callable[[str], ModuleType]) -> None:
    webhook = example("webhook")
    async with TestEnvironment() as env:
        assert await env.run(webhook.payment_workflow, amount=1250, currency="eur") == "Payment of 12.50 EUR recorded."


async def test_a_batch_says_which_items_failed(example: Callable[[str], ModuleType]) -> None:
    batch = example("batch")
    async with TestEnvironment() as env:
        output = await env.run(batch.index_documents, doc_ids=["a", "corrupt", "b"])
    assert output == {"indexed": 2, "failed": ["corrupt"]}


async def test_frames_come_back_in_order(example: Callable[[str], ModuleType]) -> None:
    rendering = example("rendering")
    async with TestEnvironment() as env:
        output = await env.run(rendering.render_workflow, scene="harbour", frames=3)
    assert output == ["harbour-0000.png", "harbour-0001.png", "harbour-0002.png"]


def test_every_example_says_how_to_try_it() -> None:
    for path in EXAMPLES.glob("*.py"):
        documented = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert f"agnt5 dev examples/{path.name}" in documented or f"agnt5 processor examples/{path.name}" in documented
        assert path.stem not in sys.stdlib_module_names, f"{path.name} would hide the standard library's module"


def test_the_project_that_init_writes_passes_its_own_tests(tmp_path: Path) -> None:
    shutil.copytree(TEMPLATE, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:cloudcoil",
            "-p",
            "no:asyncio",
            "-W",
            "error",
        ],
        cwd=tmp_path / "project",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
