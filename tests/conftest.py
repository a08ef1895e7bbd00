"""The fixtures that all tests share."""

pytest_plugins = [
    "tests.fixtures.postgres",
    "tests.fixtures.redis",
    "tests.fixtures.scripted_shard",
    "tests.fixtures.shard",
    "tests.fixtures.proxy",
    "tests.fixtures.stack",
    "tests.fixtures.up",
    "tests.browser.npm_packages",
    "tests.fixtures.deployment",
    "tests.fixtures.front",
]
