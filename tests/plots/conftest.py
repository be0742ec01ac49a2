"""Figures are drawn from made-up records of the smallest profile, in a root of the test's own."""

import pytest
from synthetic_records import made_up_root, write_all


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A root that holds every record of `ci`, made up; for the whole module."""
    with made_up_root(tmp_path_factory.mktemp("recorded")) as root:
        write_all("ci")
        yield root
