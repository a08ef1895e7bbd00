"""A shard as one of several: its entry in the directory, the other shards of its node, its successor."""
