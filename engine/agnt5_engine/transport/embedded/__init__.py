"""The log in a directory: topics, offsets and group positions in one RocksDB, for one process and no broker."""
