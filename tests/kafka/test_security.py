"""The settings for SASL and TLS reach every connection, and a refusal is told from an absence."""

from __future__ import annotations

from typing import Any

import pytest

from agnt5_engine.settings import Settings
from agnt5_engine.transport import make_membership
from agnt5_engine.transport.base import BadTopicError, Message, TopicPartition, TransportError
from agnt5_engine.transport.kafka import open_log
from tests.kafka.processors import Recorder, until
from tests.kafka.real_log import everything, spec


def settings_for(broker: Any, protocol: str, mechanism: str | None, password: str | None = None) -> Settings:
    sasl: dict[str, Any] = {
        "kafka_sasl_mechanism": mechanism,
        "kafka_sasl_username": broker.user,
        "kafka_sasl_password": password or broker.password,
    }
    return Settings(
        broker=f"kafka://{broker.address(protocol)}",
        kafka_security_protocol=protocol,
        kafka_ssl_ca_file=broker.ca_file if "SSL" in protocol else None,
        **(sasl if mechanism else {}),
    )


@pytest.mark.parametrize(
    ("protocol", "mechanism"),
    [
        ("SASL_PLAINTEXT", "PLAIN"),
        ("SASL_PLAINTEXT", "SCRAM-SHA-256"),
        ("SASL_SSL", "SCRAM-SHA-512"),
        ("SASL_SSL", "PLAIN"),
        ("SSL", None),
    ],
)
async def test_log_checkpoints_and_membership_pass_through(
    secured_kafka: Any, fresh: Any, protocol: str, mechanism: str | None
) -> None:
    settings = settings_for(secured_kafka, protocol, mechanism)
    log = open_log(settings, patience=20)
    journal, changelog, group = fresh("journal"), fresh("changelog"), fresh("g")
    await log.create([spec(journal), spec(changelog)], 1)
    source = TopicPartition(journal, 0)
    await log.append(source, [Message(b"k", b"v")])
    checkpointer = log.checkpointer(fresh("id"), group, TopicPartition(changelog, 0))
    await checkpointer.open()
    await checkpointer.write([Message(b"marker", b"0")], source, 0)
    assert len(await everything(log, TopicPartition(changelog, 0))) == 1
    sink = Recorder(log, group, journal)
    membership = sink.membership = make_membership(
        settings.broker,
        app_id=group,
        instance_id="a",
        advertised_url="http://a:8080",
        journal=journal,
        partitions=1,
        triggers=[],
        sink=sink,
        settings=settings,
    )
    await membership.start()
    await until(lambda: sink.values == [b"v"])
    assert [member.partitions for member in await membership.members()] == [(0,)]
    await membership.stop(leave=True)
    await log.close()


async def test_a_topic_that_the_user_may_not_see_is_not_taken_for_one_that_is_missing(kafka_broker: Any) -> None:
    authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    broker = kafka_broker({"authorizer.class.name": authorizer, "super.users": "User:ANONYMOUS"}, security=True)
    log = open_log(settings_for(broker, "SASL_PLAINTEXT", "PLAIN"))
    with pytest.raises(BadTopicError, match="does not let us see topic 'orders'; give this user access"):
        await log.topics(["orders"])
    assert await log.topics() == {}
    await log.close()


async def test_a_refused_password_is_an_error_that_names_the_settings(secured_kafka: Any) -> None:
    for mechanism in ("PLAIN", "SCRAM-SHA-256"):
        log = open_log(settings_for(secured_kafka, "SASL_PLAINTEXT", mechanism, "wrong"))
        with pytest.raises(TransportError, match="AGNT5_KAFKA_SASL_PASSWORD"):
            await log.cluster_id()
        with pytest.raises(TransportError, match="AGNT5_KAFKA_SASL_PASSWORD"):
            await log.append(TopicPartition("t", 0), [Message(b"k", b"v")])
        await log.close()


async def test_a_certificate_nobody_vouches_for_is_an_error_that_names_the_settings(secured_kafka: Any) -> None:
    settings = settings_for(secured_kafka, "SSL", None).model_copy(update={"kafka_ssl_ca_file": None})
    log = open_log(settings)
    with pytest.raises(TransportError, match="AGNT5_KAFKA_SSL_CA_FILE"):
        await log.cluster_id()
    await log.close()
