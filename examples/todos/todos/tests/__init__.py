"""Tests of each kind that Django has: rolled back, committed, and with a live server."""
