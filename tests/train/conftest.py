"""What runs in the test's own process share."""

import pytest

from bandpo.run.host import Host


@pytest.fixture(scope="session")
def host():
    """One for all modules: a process can make its process group once."""
    with Host() as host:
        yield host
