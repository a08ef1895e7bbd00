"""Runnable applications, one directory each: docs/guide/frameworks.md goes through them."""
