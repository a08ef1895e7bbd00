"""What a shard tells of itself: counters, metrics, its canary, the feed of the operations page."""
