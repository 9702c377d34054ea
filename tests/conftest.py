"""Makes test modules importable by the names that pytest gives them, for the processes that tests start; and a cache of theirs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Last, so that what is installed comes before what is checked out here.
sys.path.append(str(Path(__file__).parent.parent))


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests, and the processes that they start, keep for later runs is kept in a folder of theirs, not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BREWER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
