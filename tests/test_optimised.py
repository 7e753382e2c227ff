"""The suite compiles at XLA's lowest level, for speed; the numbers hold as runs compile them."""

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent
CONTRACTS = ("test_kl.py", "test_objective.py", "test_advantages.py")


@pytest.mark.long
def test_numerical_contracts_hold_as_a_run_compiles_them():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CONTRACTS]
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
