"""Lists of things to do."""
