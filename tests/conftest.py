"""Test-wide settings: eight virtual devices, strict numerics, and a compilation cache."""

import os

# Before jax starts: eight virtual CPU devices, on which meshes of every shape are tested.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture(autouse=True)
def _fresh_trace_counts():
    """`chex.assert_max_traces` counts by function name: every test starts from zero."""
    import chex

    chex.clear_trace_counter()
    yield


@pytest.fixture
def devices():
    """The eight virtual devices."""
    return jax.devices()[:8]
