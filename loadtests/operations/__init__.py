"""Operators at work: every operation on a running node, one after the other, while clients are connected."""
