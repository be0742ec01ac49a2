"""Every test starts from the same seed, in an empty root of its own, on one thread."""

import os
import random
import sys
from unittest import mock

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("fixed", derandomize=True)  # the same examples in every run
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def alike(request, monkeypatch):
    """One seed at the start; the environment (--root, --data) and what measures coverage end as they began.

    No waiting for the disk, which thousands of small records would do, but in tests of files and faults.
    """
    import numpy as np
    import torch

    torch.set_default_dtype(torch.float32)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    if request.module.__name__ not in ("test_faults", "test_store"):
        monkeypatch.setattr("fsr.files.os.fsync", lambda handle: None)
    trace = sys.gettrace()
    with mock.patch.dict(os.environ):
        yield
    sys.settrace(trace)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty root for records; the real results folder is never touched."""
    monkeypatch.setenv("FSR_ROOT", str(tmp_path))
    return tmp_path
