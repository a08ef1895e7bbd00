"""Template tags, found by Django under this name."""
