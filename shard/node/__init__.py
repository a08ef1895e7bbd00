"""A shard as one of several: its entry in the directory, its siblings on this node, its successor."""
