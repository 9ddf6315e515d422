from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from agnt5_engine.logs import bound, configure_logs
from agnt5_engine.settings import load_settings

NEW_KEY, OLD_KEY = (base64.b64encode(bytes(range(first, first + 32))).decode() for first in (1, 100))


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def configured(**overrides: Any) -> io.StringIO:
    stream = io.StringIO()
    configure_logs(load_settings(**{"log_format": "json", **overrides}), stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_object_with_its_fields() -> None:
    stream = configured()
    structlog.stdlib.get_logger("engine").info("partition.recovered", partition=3, rows=512)
    (line,) = lines(stream)
    assert list(line)[:4] == ["time", "level", "event", "logger"]
    assert line["time"].endswith("Z")
    assert (line["level"], line["event"], line["logger"]) == ("info", "partition.recovered", "engine")
    assert (line["partition"], line["rows"]) == (3, 512)


def test_what_is_bound_is_on_every_line_inside_also_of_libraries() -> None:
    stream = configured()
    with bound(run_id="r1"):
        structlog.stdlib.get_logger("engine").info("step.started")
        logging.getLogger("some.library").warning("slow: %s", "disk")
    structlog.stdlib.get_logger("engine").info("idle")
    assert [line.get("run_id") for line in lines(stream)] == ["r1", "r1", None]
    assert lines(stream)[1]["event"] == "slow: disk"


def test_the_level_is_kept_and_talkative_libraries_only_warn() -> None:
    stream = configured(log_level="info")
    structlog.stdlib.get_logger("engine").debug("hidden")
    logging.getLogger("aiokafka.conn").info("hidden")
    logging.getLogger("agnt5_engine.transport.faust_app").info("[^App]: Starting...")
    logging.getLogger("aiokafka.conn").warning("seen")
    assert [line["event"] for line in lines(stream)] == ["seen"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_secret_reaches_a_line(log_format: str) -> None:
    stream = configured(
        log_format=log_format,
        broker="kafka://a:9092",
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="PLAIN",
        kafka_sasl_username="me",
        kafka_sasl_password='hunter"2-long',
        webhook_secrets={"stripe": "whsec_long_one"},
        payload_keys=f"new:{NEW_KEY}, old:{OLD_KEY}",
    )
    log = structlog.stdlib.get_logger("engine")
    log.info("a", password="visible-1", headers={"X-API-KEY": "visible-2", "accept": "json"}, token_count=3)
    log.info("b", url="https://me:visible-3@registry.example/x", held=SecretStr("visible-4"), key=b"visible-5")
    log.info('it said hunter"2-long and whsec_long_one', text=['hunter"2-long'])
    log.info(f"opened with {NEW_KEY}, not {OLD_KEY}")
    try:
        raise RuntimeError('login with hunter"2-long failed')
    except RuntimeError:
        log.exception("c")
    logging.getLogger("library").error("Authorization failed for %s", "whsec_long_one")
    text = stream.getvalue()
    for secret in ("visible", 'hunter"2', 'hunter\\"2', "whsec_long", NEW_KEY, OLD_KEY):
        assert secret not in text
    assert "token_count" in text
    assert "json" in text
    assert "RuntimeError" in text


def test_text_from_outside_neither_commands_the_console_nor_forges_a_line() -> None:
    stream = configured(log_format="console")
    hostile = "\x1b]52;c;cm0=\x07\x9b2J\n2026-01-01T00:00:00Z [info     ] all is well\r"
    log = structlog.stdlib.get_logger("engine")
    log.info(f"charging {hostile}", topic="\x1b[2J", held={"x": [hostile]})
    logging.getLogger("library").warning("no topic %s", hostile)
    try:
        raise ValueError(hostile)
    except ValueError:
        log.exception("c")
    text = stream.getvalue()
    assert not any(one in text for one in "\x1b\x07\x9b\r")
    assert r"topic=\x1b[2J" in text
    assert r"ValueError: \x1b]52" in text
    assert "\n2026-01-01" not in text


def test_other_peoples_loggers_stay_what_they_were() -> None:
    configured()
    assert type(logging.getLogger("one.that.was.not.there.before")) is logging.Logger


def test_an_exception_is_told_in_full() -> None:
    stream = configured()
    try:
        raise KeyError("order")
    except KeyError:
        structlog.stdlib.get_logger("engine").exception("step.failed", step="charge")
    (line,) = lines(stream)
    assert "KeyError: 'order'" in line["exception"]
    assert line["step"] == "charge"
