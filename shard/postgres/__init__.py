"""Everything of a shard that talks to PostgreSQL: reads, notifications, retention, presence, revocations."""
