"""Runs `eight_devices.py` in a process with 8 simulated devices, a group of its tests at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
GROUPS = ["one_device and vma-", "one_device and no_vma-", "one_device and auto-", "one_device and explicit-"]


@pytest.mark.parametrize("group", [*GROUPS, "not one_device"])
def test_on_eight_devices(group):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "eight_devices.py", "-k", group],
        cwd=TESTS,
        env={**os.environ, "XLA_FLAGS": flags, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
