"""The fixtures that all tests share, and how examples are drawn."""

import os

from hypothesis import HealthCheck, settings

# A slow machine is not a failure. Hypothesis draws new examples at home, and the same ones in CI, where a failure would
# stop work that did not cause it.
settings.register_profile(
    "headrace", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("headrace")

pytest_plugins = [
    "tests.fixtures.postgres",
    "tests.fixtures.ear",
    "tests.fixtures.rounds",
    "tests.fixtures.redis",
    "tests.fixtures.scripted_shard",
    "tests.fixtures.shard",
    "tests.fixtures.proxy",
    "tests.fixtures.stack",
    "tests.fixtures.up",
    "tests.fixtures.wheel",
    "tests.browser.npm_packages",
    "tests.clients.packages",
    "tests.fixtures.deployment",
    "tests.fixtures.reverse_proxy",
    "tests.fixtures.directory",
]
