"""The bus: how one shard reads new events for all, and tells them over Redis."""
