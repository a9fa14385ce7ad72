"""Shared by all tests: two threads at most, and NaN where memory was never written."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# nothing here may reach a hub
os.environ.setdefault("HF_HUB_OFFLINE", "1")
