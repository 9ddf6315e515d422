"""Faust's assignor (sticky, co-partitioned), fitted to static membership and to deployments that change triggers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from faust.assignor.client_assignment import ClientAssignment, ClientMetadata
from faust.assignor.partition_assignor import PartitionAssignor

from agnt5_engine.transport.kafka.members import address


class Assignor(PartitionAssignor):  # type: ignore[misc]
    """One member's side of the group's assignment."""

    def __init__(self, app: Any, replicas: int = 0) -> None:
        super().__init__(app, replicas)
        self._address = address(app.wiring.advertised_url, app.wiring.instance_id)
        self._insisted = 0

    @property
    def _url(self) -> str:
        return self._address

    def insist(self) -> None:
        """Make the next rejoin a rebalance: Kafka skips it for a member that says what it said before."""
        self._insisted += 1

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        told = self._metadata.dumps() + b" " * self._insisted  # blanks that JSON ignores and Kafka compares
        return ConsumerProtocolMemberMetadata(self.version, sorted(topics), told)

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Take an assignment, also one that was made for this member's predecessor under another URL."""
        metadata = ClientMetadata.loads(self._decompress(assignment.user_data))
        metadata.url = self._address
        taken = {topic: list(partitions) for topic, partitions in assignment.assignment}
        metadata.assignment = ClientAssignment(actives=taken, standbys=metadata.assignment.standbys)
        super().on_assignment(
            ConsumerProtocolMemberAssignment(
                assignment.version, assignment.assignment, self._compress(metadata.dumps())
            )
        )

    def covered(self) -> set[tuple[str, int]]:
        """Every partition that the group's last assignment gave to somebody."""
        return {
            (topic, partition)
            for topics in self.external_topic_distribution.values()
            for topic, partitions in topics.items()
            for partition in partitions
        }
