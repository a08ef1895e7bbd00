"""Runnable applications, one directory each; see README.md beside this file."""
