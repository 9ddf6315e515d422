"""One client of the cluster for everything on the engine's loop: connections, leaders, coordinators, patience.

aiokafka's client does the protocol; here is what the engine wants of it beyond that: it never lets a broker create a
topic by asking for it, it waits for a broker that is away and says so, and it tells a refused password from an
absent broker.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import structlog
from aiokafka import errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.conn import CloseReason, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from agnt5_engine.transport.base import BadTopicError, RetriableError, TopicPartition, TransportError

log = structlog.stdlib.get_logger(__name__)

# Above the broker's own limit for an append (0.8 of it), below what a user waits for: a stalled broker is asked again
# after this, and idempotence makes asking again harmless.
REQUEST_TIMEOUT_MS = 10_000
_SAY_EVERY = 10.0  # seconds between log lines while a broker is away
_REFUSED = (
    errors.AuthenticationFailedError,
    errors.AuthenticationMethodNotSupported,
    errors.SaslAuthenticationFailed,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
)


class Channel(Enum):
    """Connections that must not wait for each other: a broker answers one request of a connection at a time."""

    WRITE = "write"
    READ = "read"
    ASK = "ask"
    TRANSACTION = "transaction"


class Client(AIOKafkaClient):  # type: ignore[misc]
    """aiokafka's client, except that asking about a topic never creates it, and that a first connection says why it
    failed, and that none outlives it."""

    _over = False  # closed: whoever is still at work with it gets no connection, which would be nobody's

    @classmethod
    def take_over(cls, client: AIOKafkaClient) -> None:
        """Make one of these of a client that aiokafka has made for a consumer: there is no `__init__` to miss."""
        client.__class__ = cls

    async def bootstrap(self) -> None:
        """Learn of the cluster from the first server that answers. Raises the last server's OSError or KafkaError."""
        problem: Exception = OSError(f"no servers in {self._bootstrap_servers!r}")
        for host, port, _ in self.hosts:
            try:
                connection = await create_conn(
                    host,
                    port,
                    client_id=self._client_id,
                    request_timeout_ms=self._request_timeout_ms,
                    ssl_context=self._ssl_context,
                    security_protocol=self._security_protocol,
                    sasl_mechanism=self._sasl_mechanism,
                    sasl_plain_username=self._sasl_plain_username,
                    sasl_plain_password=self._sasl_plain_password,
                )
                try:
                    response = await connection.send(MetadataRequest([], allow_auto_topic_creation=False))
                finally:
                    connection.close()
            except (OSError, errors.KafkaError) as error:  # TimeoutError is an OSError
                problem = error
                if isinstance(error, (*_REFUSED, ssl.SSLError)):
                    break
            else:
                self.cluster.update_metadata(response)
                if self._sync_task is None:  # type: ignore[has-type]
                    self._sync_task = asyncio.get_running_loop().create_task(self._md_synchronizer())
                return
        raise problem

    async def _get_conn(self, node_id: int, **options: Any) -> Any:
        if self._over:
            return None
        known = self._conns.get((node_id, options.get("group", ConnectionGroup.DEFAULT)))
        if known is not None and not known.connected():
            # The broker has ended it. aiokafka would only forget it, unclosed and with all who wait for its answers.
            known.close(reason=CloseReason.CONNECTION_BROKEN)
        connection = await super()._get_conn(node_id, **options)
        if self._over and connection is not None:  # made while this was closed
            connection.close()
            return None
        return connection

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        try:
            return await super().send(node_id, request, **options)
        except KeyError as error:
            # Another request's time has run out at the same moment, and it has put the connection away already.
            raise errors.RequestTimedOutError() from error

    async def close(self) -> None:
        """Close every connection; one that somebody is just making is closed as soon as it is made. Whoever waits for
        metadata is told that there is none."""
        self._over = True
        for connection in list(self._conns.values()):  # at once: what follows may fail, or be given up
            connection.close()
        await super().close()
        asked, self._md_update_fut = self._md_update_fut, None  # type: ignore[has-type]
        if asked is not None and not asked.done():
            asked.set_result(False)

    async def _metadata_update(self, cluster_metadata: Any, topics: Iterable[str]) -> bool:
        request = MetadataRequest(list(topics) or None, allow_auto_topic_creation=False)
        nodes = [broker.nodeId for broker in self.cluster.brokers()]
        random.shuffle(nodes)
        for node in nodes:
            connection = await self._get_conn(node)
            if connection is None:
                continue
            try:
                response = await connection.send(request)
            except (errors.KafkaError, TimeoutError):
                continue
            if response.brokers:
                cluster_metadata.update_metadata(response)
                return True
        cluster_metadata.failed_update(None)
        return False


class Wire:
    """A connected client, and what is known of the cluster. `options` are aiokafka's client options."""

    def __init__(self, options: Mapping[str, Any], client_id: str = "agnt5", patience: float = float("inf")) -> None:
        """`patience`: seconds for which any request keeps being tried while brokers are away."""
        self._options = {**options, "client_id": client_id, "request_timeout_ms": REQUEST_TIMEOUT_MS}
        self.patience = patience
        self._client: Client | None = None
        self._connecting: asyncio.Lock = asyncio.Lock()
        self._closed = False
        self._coordinators: dict[tuple[CoordinationType, str], int] = {}
        self._away_since: float | None = None
        self._said = 0.0
        self.cluster: Any = None
        quiet = logging.getLogger("aiokafka")
        if quiet.level == logging.NOTSET:  # it repeats itself ten times a second; `away` says it once
            quiet.setLevel(logging.CRITICAL)
        # A trigger whose topic does not exist yet is no error; what is asked for and missing is told by `check_exists`.
        logging.getLogger("aiokafka.cluster").setLevel(logging.CRITICAL)

    @property
    def servers(self) -> str:
        return str(self._options["bootstrap_servers"])

    @property
    def away_for(self) -> float | None:
        """Seconds for which no broker has answered; None while one does."""
        return None if self._away_since is None else time.monotonic() - self._away_since

    async def ready(self) -> Client:
        """The client, once a broker has answered. Raises TransportError when it refuses us, RetriableError when
        patience ends or this was closed."""
        if self._client is not None:
            return self._client
        async with self._connecting:
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> Client:
        attempt = Attempt(self)
        while True:
            self._check_open()
            client = Client(**self._options)
            try:
                await client.bootstrap()
            except _REFUSED as error:
                raise TransportError(
                    f"Kafka at {self.servers} refused to let us in ({error}); check AGNT5_KAFKA_SASL_MECHANISM, "
                    "AGNT5_KAFKA_SASL_USERNAME and AGNT5_KAFKA_SASL_PASSWORD"
                ) from error
            except ssl.SSLError as error:
                raise TransportError(
                    f"no TLS with Kafka at {self.servers} ({error}); check AGNT5_KAFKA_SECURITY_PROTOCOL and "
                    "AGNT5_KAFKA_SSL_CA_FILE"
                ) from error
            except (OSError, errors.KafkaError) as error:
                await attempt.failed(error)
            else:
                await self._keep(client)
                self.cluster = client.cluster
                self.note_back()
                return client

    async def _keep(self, client: Client) -> None:
        """What connected while this was closed is nobody's."""
        if self._closed:
            await client.close()
            self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise RetriableError(f"the connection with Kafka at {self.servers} was closed")

    async def send(self, node: int, request: Any, channel: Channel = Channel.ASK) -> Any:
        """One request to one broker, once. Raises aiokafka's errors."""
        client = self._client or await self.ready()
        response = await client.send(node, request, group=channel)
        if self._away_since is not None:
            self.note_back()
        return response

    async def ask(self, request: Any) -> Any:
        """One request to any broker, tried until it is answered."""
        client = await self.ready()
        attempt = Attempt(self)
        while True:
            node = client.get_random_node()
            try:
                if node is not None:
                    return await self.send(node, request)
                problem: Exception = errors.NoBrokersAvailable()
            except errors.KafkaError as error:
                problem = unless_final(error)
            await attempt.failed(problem)
            await self.refresh()  # all the brokers known so far may have been replaced by others

    # -- where things are

    async def refresh(self, *topics: str) -> bool:
        """Ask for the leaders again, of `topics` too from now on. False when nobody answered."""
        client = await self.ready()
        client._topics.update(topics)
        if await client.force_metadata_update():
            self.note_back()
            return True
        self._check_open()
        try:
            # The brokers known so far may have been replaced by others behind the same addresses.
            await client.bootstrap()
        except (OSError, errors.KafkaError):
            return False
        await self._keep(client)
        return bool(await client.force_metadata_update())

    def leader(self, source: TopicPartition) -> int | None:
        """The broker that leads a partition, as far as is known just now."""
        if self.cluster is None:
            return None
        node = self.cluster.leader_for_partition(source)
        return None if node is None or node < 0 else int(node)

    async def find_leader(self, source: TopicPartition) -> int:
        """The same, asking until one is known. Raises BadTopicError when there is no such topic or partition."""
        attempt = Attempt(self)
        while (node := self.leader(source)) is None:
            answered = await self.refresh(source.topic)
            if (node := self.leader(source)) is not None:
                break
            if answered and attempt.tries >= 3:  # a topic just created is known to all brokers a moment later
                self.check_exists(source)
            await attempt.failed(errors.LeaderNotAvailableError(f"{source.topic}[{source.partition}] has no leader"))
        return node

    def check_exists(self, source: TopicPartition) -> None:
        """Raises BadTopicError when the metadata at hand shows no such topic or partition."""
        if source.topic in self.cluster.unauthorized_topics:
            raise BadTopicError(f"Kafka does not let us use topic {source.topic!r}; give this user access to it")
        partitions = self.cluster.partitions_for_topic(source.topic)
        if partitions is None:
            raise BadTopicError(
                f"topic {source.topic!r} does not exist; create it (the engine does its own with AGNT5_CREATE_TOPICS=1)"
            )
        if source.partition not in partitions:
            raise BadTopicError(
                f"topic {source.topic!r} has {len(partitions)} partitions, none numbered {source.partition}"
            )

    async def coordinator(self, kind: CoordinationType, key: str) -> int:
        """The broker that keeps a group's or a transactional ID's state."""
        known = self._coordinators.get((kind, key))
        if known is not None:
            return known
        client = await self.ready()
        attempt = Attempt(self)
        while True:
            try:
                node = int(await client.coordinator_lookup(kind, key))
            except errors.KafkaError as error:
                await attempt.failed(unless_final(error))
                await self.refresh()
            else:
                if self.cluster.broker_metadata(node) is None:
                    await self.refresh()
                self._coordinators[kind, key] = node
                return node

    def forget_coordinator(self, kind: CoordinationType, key: str) -> None:
        self._coordinators.pop((kind, key), None)

    # -- saying that a broker is away

    def note_away(self, problem: Exception) -> None:
        """No broker has answered: say so, now and again while that lasts."""
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
        if now - self._said >= _SAY_EVERY:
            self._said = now
            seconds = round(now - self._away_since)
            log.warning("kafka.away", servers=self.servers, seconds=seconds, error=str(problem) or repr(problem))

    def note_back(self) -> None:
        """A broker has answered."""
        if self._away_since is not None and self._said:
            log.info("kafka.back", servers=self.servers, seconds=round(time.monotonic() - self._away_since))
        self._away_since, self._said = None, 0.0

    async def close(self) -> None:
        """Close it for good: what is under way ends with RetriableError."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.close()


class Attempt:
    """The tries of one request: waits a little longer after each failure, and gives up when patience ends."""

    __slots__ = ("_deadline", "_wire", "tries")

    def __init__(self, wire: Wire, patience: float | None = None) -> None:
        self._wire = wire
        self._deadline = time.monotonic() + (wire.patience if patience is None else patience)
        self.tries = 0

    async def failed(self, problem: Exception) -> None:
        """Note a failure and wait before the next try. Raises RetriableError when there is no more time."""
        self.tries += 1
        if time.monotonic() >= self._deadline:
            raise RetriableError(f"Kafka at {self._wire.servers} does not answer: {problem}") from problem
        if self.tries > 3:  # a new leader or coordinator takes a moment and is no news
            self._wire.note_away(problem)
        await asyncio.sleep(min(0.05 * 2 ** min(self.tries, 5), 1.0))


def unless_final(error: errors.KafkaError) -> errors.KafkaError:
    """The error when trying again can help; raises TransportError when it cannot."""
    if isinstance(error, errors.BrokerResponseError) and not error.retriable and error.errno not in RETRIABLE:
        raise TransportError(str(error)) from error
    return error


# Codes that mean "not now" where aiokafka's own flag is missing or the class unknown to it: corrupt in transit, leader
# moved, coordinator loading, not available or moved, log storage, unknown or fenced leader epoch, throttled, unstable.
RETRIABLE = frozenset({2, 3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 19, 20, 41, 51, 56, 72, 74, 75, 76, 78, 88, 89})
