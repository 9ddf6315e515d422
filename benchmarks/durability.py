"""What is safe at the moment when something is acknowledged, for each side that can be measured, in one line."""

SIDES = {
    "kafka": "acks=all, 1 replica, Kafka's default flushing: in the broker's page cache at the ack, synced later",
    "kafka, flush=1": "acks=all, 1 replica, log.flush.interval.messages=1: synced to the disk before the ack",
    "embedded": "synced to the disk (RocksDB, group commit) before the ack",
}
