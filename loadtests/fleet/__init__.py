"""A fleet of shards on one PostgreSQL and one Redis: what it costs the two servers idle, and for each event."""
