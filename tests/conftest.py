"""For all tests: definitions that stay in their module, and a real Apache Kafka by `scripts/kafka`."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agnt5 import registry
from agnt5.function import Function
from agnt5.workflow import Workflow

_SCRIPT = Path(__file__).parent.parent / "scripts" / "kafka"
_FIXTURES = {"kafka", "kafka_broker", "own_kafka", "secured_kafka"}


def _load() -> ModuleType:
    spec = importlib.util.spec_from_loader("kafka_script", SourceFileLoader("kafka_script", str(_SCRIPT)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no cache beside the script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = bytecode
    return module


_script = _load()


_defined: dict[Path, list[Workflow[Any] | Function[Any]]] = {}


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Workflows and functions that a test module defines at import are not known to the next one. Those of other
    modules, which are imported once, are known to all tests of their folder."""
    if not isinstance(collector, pytest.Module):
        return (yield)
    before = registry.snapshot()
    registry.clear()
    try:
        return (yield)
    finally:
        made = registry.snapshot()
        registry.restore(before)
        for definition in (*made.workflows.values(), *made.functions.values()):
            path = Path(inspect.getfile(inspect.unwrap(definition.fn)))
            _defined.setdefault(path if path.name.startswith("test_") else path.parent, []).append(definition)


@pytest.fixture(autouse=True, scope="module")
def definitions_of_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """Known in a module's tests, and in what they share, are its own workflows and functions and its folder's."""
    before = registry.snapshot()
    registry.clear()
    for definition in _defined.get(request.path.parent, []) + _defined.get(request.path, []):
        (registry.add_workflow if isinstance(definition, Workflow) else registry.add_function)(definition)
    yield
    registry.restore(before)


@pytest.fixture(autouse=True)
def own_definitions() -> Iterator[None]:
    """Those that a test defines itself are forgotten after it."""
    before = registry.snapshot()
    yield
    registry.restore(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kafka)


def _need_broker() -> None:
    """Skip on a laptop that cannot run a broker; fail in CI, where that would hide what was not tested."""
    reason = _script.missing()
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs Apache Kafka: {reason}")


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a broker that all tests share: KAFKA_BOOTSTRAP_SERVERS, or one of our own."""
    given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if given:
        yield given
        return
    _need_broker()
    broker = _script.Broker(tmp_path_factory.mktemp("kafka"))
    broker.start(tied=True)
    yield broker.bootstrap
    broker.kill()
    broker.wipe()


@pytest.fixture
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Make private brokers: `broker = kafka_broker(settings={...}, security=False)` is started, and can be paused,
    resumed, killed, stopped and started again on the same data (`Broker` in scripts/kafka)."""
    _need_broker()
    made = []

    def make(settings: dict[str, str] | None = None, security: bool = False, port: int = 0) -> Any:
        broker = _script.Broker(tmp_path_factory.mktemp("broker"), port, settings, security)
        made.append(broker)
        broker.start(tied=True)
        return broker

    yield make
    for broker in made:
        broker.kill()
        broker.wipe()


@pytest.fixture(scope="module")
def broker_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from _private(tmp_path_factory.mktemp("broker"))


@pytest.fixture
def own_kafka(broker_of_module: Any) -> Iterator[Any]:
    """One private broker for the fault tests of a module; each finds it running, however the one before it ended."""
    yield broker_of_module
    broker_of_module.resume()
    broker_of_module.start(tied=True)


@pytest.fixture(scope="module")
def secured_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One private broker with SASL and TLS listeners beside the plain one."""
    yield from _private(tmp_path_factory.mktemp("secured"), security=True)


def _private(directory: Path, **options: Any) -> Iterator[Any]:
    _need_broker()
    broker = _script.Broker(directory, **options)
    broker.start(tied=True)
    yield broker
    broker.kill()
    broker.wipe()
