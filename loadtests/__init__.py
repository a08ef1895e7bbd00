"""Load tests: locust users that follow and publish event streams, and a checker that misses nothing. See README.md."""
