"""What the pages say can be tried: their Python runs, their links lead somewhere, their commands exist."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(?ms)^```(\w+)\n(.*?)^```")


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in FENCE.findall(page.read_text()) if name == language]


class Shop:
    """What the README's workflow calls without defining it."""

    def __init__(self) -> None:
        self.charges: list[str] = []
        self.mails: list[str] = []

    async def charge(self, order_id: str, amount: float, *, idempotency_key: str) -> str:
        self.charges.append(idempotency_key)
        return f"ch-{order_id}"

    async def send(self, text: str) -> None:
        self.mails.append(text)


def run_page(page: Path, **names: Any) -> types.ModuleType:
    """The page's Python blocks, in order, as one module."""
    module = types.ModuleType(f"page_{page.stem}")
    module.__dict__.update(names)
    for code in blocks(page, "python"):
        # As a file of its own would be: no postponed annotations from here.
        exec(compile(code, str(page), "exec", dont_inherit=True), module.__dict__)
    return module


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_the_python_on_a_page_runs(page: Path) -> None:
    run_page(page, payments=Shop(), mail=Shop())


async def test_the_readmes_workflow_does_what_it_says() -> None:
    from agnt5.testing import TestEnvironment

    shop = Shop()
    page = run_page(ROOT / "README.md", payments=shop, mail=shop)
    async with TestEnvironment() as env:
        output = await env.run(page.order_workflow, order_id="A-1", amount=89.99)
    assert output == {"order_id": "A-1", "charge_id": "ch-A-1"}
    assert len(shop.charges) == 1
    assert shop.mails == ["Order A-1 is paid (ch-A-1)."]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"(?m)^#+ (.+)$", FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text()))
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_variable_named_on_a_page_is_a_setting(page: Path) -> None:
    from agnt5_engine.settings import Settings

    known = {f"AGNT5_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bAGNT5_[A-Z][A-Z0-9_]*[A-Z0-9](?![A-Z0-9_<])", page.read_text()))
    families = r"AGNT5_(WEBHOOK_\w+_SECRET|(QUEUE|FUNCTION)_\w+_(CONCURRENCY|RATE))"
    assert {name for name in named - known if not re.fullmatch(families, name)} == set()


def test_every_make_target_named_on_a_page_exists() -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    for page in PAGES:
        assert set(re.findall(r"\bmake ([a-z]+)\b(?=`|\s+#|$)", page.read_text(), re.MULTILINE)) <= targets, page.name
