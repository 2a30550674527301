"""Every test runs offline, on the CPU, with one thread per process (`tests/ranks.py` forks)."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import torch

hypothesis.settings.register_profile("project", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("project")
torch.set_num_threads(1)

# The same examples in every run, and no limit on the time of one: machines are slow at times.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")
