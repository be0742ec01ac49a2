"""Every test starts from the same seed, in an empty root of its own, on one thread."""

import os
import sys

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("fixed", derandomize=True)  # the same examples in every run
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def seeded():
    """Same random numbers for every test, whatever ran before it."""
    import random

    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def unsynced(request, monkeypatch):
    """No waiting for the disk, which thousands of small records would do, but in tests of files and faults."""
    if request.module.__name__ not in ("test_faults", "test_files", "test_store"):
        monkeypatch.setattr("fsr.files.os.fsync", lambda handle: None)


@pytest.fixture(autouse=True)
def traced():
    """What measures coverage goes on after a library has switched tracing off."""
    trace = sys.gettrace()
    yield
    sys.settrace(trace)


@pytest.fixture(autouse=True)
def places():
    """A command's --root and --data, which it hands on as variables, end with the test that gave them."""
    before = {name: os.environ.get(name) for name in ("FSR_ROOT", "FSR_DATA")}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty root for records; the real results folder is never touched."""
    monkeypatch.setenv("FSR_ROOT", str(tmp_path))
    return tmp_path
