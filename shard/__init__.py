"""A shard: one process that owns client sockets and writes committed events to them."""
