"""Figures are drawn from made-up records of the smallest profile, in a root of the test's own."""

import pytest
from synthetic_records import write_all


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A root that holds every record of `ci`, made up; for the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("recorded")
        patch.setenv("FSR_ROOT", str(root))
        patch.setenv("FSR_COMMIT", "c0ffee")
        write_all("ci")
        yield root
