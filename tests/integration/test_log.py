"""The log's promises about ids: order, gaps, concurrency, cost, rights."""
from tests.fixtures.postgres import Postgres

def test_x(database_url: str) -> None:
    pass
