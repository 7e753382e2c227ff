"""Test-wide settings: eight virtual devices, a compilation cache, and the tiny experiment."""

import os
from pathlib import Path

import quick

# Before jax starts: eight virtual CPU devices, on which meshes of every shape are tested; no search
# for a TPU; programs compiled once, and quickly: nearly all of a test's time is compilation.
os.environ.setdefault("XLA_FLAGS", quick.EIGHT_DEVICES)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import gc
from unittest import mock

import jax
import pytest
import tiny
from bucket import Bucket

from fiberjax import experiment
from fiberjax.run import loop

# What is imported stays: it is not gone through again and again for garbage, of which the traces of
# programs leave much.
gc.freeze()
gc.set_threshold(20_000)


@pytest.fixture(autouse=True)
def _fresh_trace_counts():
    """`chex.assert_max_traces` counts by function name: every test starts from zero."""
    import chex

    chex.clear_trace_counter()
    yield


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_module():
    """Compiled programs live as long as the module that made them.

    Each takes mappings of memory, of which a process may have 65,530; a worker that kept all of the
    suite's would die of a segmentation fault.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def _plots(request, monkeypatch):
    """Runs of this process draw plots, which have their own tests, only where marked `drawn`."""
    if request.node.get_closest_marker("drawn") is None:
        monkeypatch.setattr(loop, "draw", lambda *arguments: None)


@pytest.fixture
def devices():
    """The eight virtual devices."""
    return jax.devices()[:8]


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    """A folder for data sets and warm starts that the tests of one process share."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="session")
def bucket():
    """The bucket of this process, at `gs://bucket`: libraries remember where they found it."""
    with Bucket() as opened, mock.patch.dict(os.environ, opened.environment):
        yield opened


@pytest.fixture
def make_config(request, scratch):
    """Makes the tiny config for a gate preset; its data sets and warm starts are made once."""

    def make(gate="fiberpo_domain"):
        config = tiny.get_config(gate)
        if request.node.get_closest_marker("looked") is not None:
            config.diagnostics.every = 1
        config.tasks.data_dir = str(scratch / "data")
        config.warm_start.directory = str(scratch / "warm_starts")
        return config

    return make


@pytest.fixture
def one_device():
    """The first virtual device: the mesh of the tiny config."""
    return jax.devices()[:1]


@pytest.fixture
def build(make_config, one_device):
    """Builds the tiny experiment on one device, with changed options: `section__name=value`."""

    def make(gate="fiberpo_domain", **values):
        config = make_config(gate)
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
        return experiment.from_config(config, one_device)

    return make
