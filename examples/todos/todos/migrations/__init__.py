"""The migrations of the lists."""
