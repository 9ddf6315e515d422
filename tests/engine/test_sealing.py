"""With AGNT5_PAYLOAD_KEYS, nothing that the engine keeps can be read without a key."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from agnt5 import WorkflowContext, workflow
from agnt5_engine.records.avro import decode, encode, use_codec
from agnt5_engine.records.journal import SignalSent
from agnt5_engine.records.sealing import AesGcm, SealError, parse_keys
from agnt5_engine.settings import load_settings
from tests.engine.conftest import Engine

OLD, NEW = b"o" * 32, b"n" * 32
RECORD = SignalSent("run", "command", "name", b'"the secret"')


@pytest.fixture(autouse=True)
def plain_afterwards() -> Iterator[None]:
    yield
    use_codec(None)


def test_a_sealed_record_opens_with_its_key_after_rotation_and_with_no_other() -> None:
    use_codec(AesGcm({"old": OLD}))
    sealed = encode(RECORD)
    assert b"secret" not in sealed
    use_codec(AesGcm({"new": NEW, "old": OLD}))
    assert decode(sealed) == RECORD
    for codec in (AesGcm({"new": NEW}), AesGcm({"old": NEW}), None):
        use_codec(codec)
        with pytest.raises(SealError):
            decode(sealed)


def test_a_damaged_sealed_record_is_refused_wherever_it_is_damaged() -> None:
    use_codec(AesGcm({"old": OLD}))
    sealed = encode(RECORD)
    for i in range(2, len(sealed)):
        with pytest.raises(SealError):
            decode(sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :])
    for i in range(2, len(sealed)):
        with pytest.raises(SealError):
            decode(sealed[:i])


def test_what_was_written_before_sealing_is_still_read() -> None:
    data = encode(RECORD)
    use_codec(AesGcm({"old": OLD}))
    assert decode(data) == RECORD


@pytest.mark.parametrize("text", ["nokey", "id:not base64!", f"id:{base64.b64encode(b'short').decode()}"])
def test_a_wrong_key_setting_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)payload_keys") as refused:
        load_settings(payload_keys=text)
    assert text.partition(":")[2] not in str(refused.value) or ":" not in text


@workflow
async def confides(ctx: WorkflowContext) -> list[str]:
    return [await ctx.wait_for_signal(name) for name in ("go", "go", "other")]


async def test_no_file_of_the_embedded_engine_holds_a_payload(tmp_path: Path) -> None:
    keys = f"one:{base64.b64encode(OLD).decode()}"
    use_codec(AesGcm(parse_keys(keys)))
    engine = await Engine(tmp_path / "data", payload_keys=keys).start()
    run_id = await engine.submit("confides", session_id="a session")
    await engine.processor.signal(run_id, "go", "Chunky Bacon", None)
    await engine.restart(crash=True)
    await engine.processor.signal(run_id, "go", "Chunky Bacon", None)
    await engine.processor.signal(run_id, "other", "Chunky Bacon", None)
    assert (await engine.processor.finished(run_id)).output == ["Chunky Bacon"] * 3
    await engine.stop()
    files = [f for f in (tmp_path / "data").rglob("*") if f.is_file()]
    assert files
    assert not [f for f in files if b"Chunky" in f.read_bytes()]
