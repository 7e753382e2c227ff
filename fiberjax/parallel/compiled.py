"""Compiled programs, kept from run to run: what one run has compiled, the next one reads.

A start compiles for longer than it does anything else but its warm start. The programs of a user
are in one folder for all runs, since runs that differ in a gate alone share most of them:

    $XDG_CACHE_HOME/fiberjax/compiled/<digest of the processor>

Who tells jax anything else is obeyed: `JAX_COMPILATION_CACHE_DIR` names another folder, "" none. A
program is found by the digest of its text, of jax and of the devices, and is the very program that
was compiled, so that a run that reads it ends bitwise where one that compiles does.
"""

import contextlib
import functools
import hashlib
import os
import platform
import tempfile
import threading
import time
from pathlib import Path

import jax

from fiberjax import storage

SECONDS = 0.1
"""What compiles faster is not kept: to find a program takes a few milliseconds too."""

COMPILED = "/jax/core/compile/backend_compile_duration"
"""What jax calls the time that a program took to compile, or to be read."""

DAYS = 30.0
"""A program that no run has read for so long is removed."""


def keep() -> Path | None:
    """Has jax keep what it compiles from now on, and read what was kept.

    Does nothing where jax has a folder already, or was told "", and of several processes: those
    would wait for each other to compile what one alone finds in a folder of its machine; a folder
    that they share is for `JAX_COMPILATION_CACHE_DIR` to name. Nor where the folder cannot be
    written, as on a full disk. Any number of runs may use the folder at once; what jax cannot read
    of it, it compiles again with a warning.

    Returns:
      The folder; None where nothing is kept, or another than this decides.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None or jax.process_count() > 1:
        return None
    try:
        folder = storage.user_cache() / "compiled" / _processor()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Programs are executed: nobody else may have put any here.
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            return None
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
            probe.flush()
        _remove_old(folder)
    except (OSError, RuntimeError):  # The latter where there is no home.
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
    return folder


def seconds() -> float:
    """How long this process has compiled, or read what was kept, since this was first called; s.

    Of all threads together: two that compile at once count twice.
    """
    return _listening()[0]


@functools.cache
def _listening() -> list[float]:
    """Has jax tell of every program that it has compiled; what they took, in a list of one."""
    taken, lock = [0.0], threading.Lock()

    def add(event: str, duration_secs: float, **told: str | int) -> None:
        if event == COMPILED:
            with lock:
                taken[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(add)
    return taken


def _processor() -> str:
    """A digest of what the processor can do: a home may be that of several machines.

    What is compiled for one with wider vectors ends a process on another.
    """
    told = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):  # Linux alone has it.
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        told += "".join(sorted({x for x in lines if x.startswith(("flags", "Features", "model"))}))
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def _remove_old(folder: Path) -> None:
    now = time.time()
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # Another run may have removed it.
            used = path.stat()
            if now - max(used.st_atime, used.st_mtime) > DAYS * 24 * 3600:
                path.unlink()
