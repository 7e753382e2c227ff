"""Several hosts under one program: joining them, and stopping together."""

import contextlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

# A host that is silent for this long is taken for dead. Checkpoints to a busy network file system
# may hold a host up for tens of seconds.
HEARTBEAT_SECONDS = 60
# How long hosts wait for each other at the start: images and data sets load at different speeds.
START_SECONDS = 600

ASKED = 75
"""Status of a process that ended because it was asked to: try again later (EX_TEMPFAIL)."""

_leaving: list[Callable[[], None]] = []


class Ended(SystemExit):
    """All hosts end after the same step, having agreed; each with the same status."""

    def __init__(self, message: str, status: int = 1):
        """Says why; one host alone ends with status 1."""
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def before_leaving(call: Callable[[], None]) -> Iterator[None]:
    """Within it, something is called should this process end without unwinding, by `leave`."""
    _leaving.append(call)
    try:
        yield
    finally:
        _leaving.remove(call)


def on_cluster() -> bool:
    """Whether jax can find the other hosts by itself: TPU hosts, Cloud TPU on GKE, Slurm."""
    tpu_devices = any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return tpu_devices or slurm or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ


def leave_out_absent_tpus() -> None:
    """Keeps jax from looking for TPUs on a machine that has none, before any backend starts.

    With libtpu installed, to plan for slices, it would look, and say at length that it found none.
    Whoever set `JAX_PLATFORMS` is obeyed, and where jax has a plugin for GPUs it chooses by itself.
    """
    google = "0x1ae0"
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if jax.config.values["jax_platforms"] or any(
        path.read_text().strip() == google for path in vendors
    ):
        return
    installed = {name for name in ("libtpu", "jax_plugins") if importlib.util.find_spec(name)}
    if installed == {"libtpu"}:
        jax.config.update("jax_platforms", "cpu")


def start(
    mode: str, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Chooses the platforms and joins the hosts, before anything else of jax runs.

    Args:
      mode: "auto" joins where `on_cluster`, "on" always, "off" never; a coordinator means "on".
      coordinator: host:port of process 0; None where jax finds it by itself.
      num_processes: of the run; with a coordinator.
      process_id: of this process, from 0; with a coordinator.

    Raises:
      ValueError: some of the three are given, or do not fit together.
    """
    leave_out_absent_tpus()
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if coordinator is None or num_processes is None or process_id is None:
            raise ValueError(
                "--coordinator, --num_processes and --process_id go together; got "
                f"{coordinator!r}, {num_processes!r} and {process_id!r}"
            )
        if not 0 <= process_id < num_processes:
            raise ValueError(
                f"--process_id must be from 0 to {num_processes - 1} for --num_processes="
                f"{num_processes}; got {process_id}"
            )
        if mode == "off":
            raise ValueError("--coordinator is given, but --distributed=off")
    elif mode == "off" or (mode == "auto" and not on_cluster()):
        return
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=START_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )


@contextlib.contextmanager
def session(
    mode: str, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Iterator[None]:
    """Joins the hosts for the length of a run; an error on one of them ends all.

    A host that fails must not wait for the others, who wait for it: it ends at once, its silence
    ends the others, and each says why. Those that have agreed to end (`Ended`) wait for each other,
    so that none takes another's end for its death.
    """
    try:
        start(mode, coordinator, num_processes, process_id)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if jax.process_count() == 1:
        yield
        return
    here = f"host {jax.process_index()} of {jax.process_count()}"
    try:
        yield
    except Ended as stop:
        with contextlib.suppress(Exception):  # Another one has died after all.
            jax.distributed.shutdown()
        leave(f"{here} stops: {stop.code}", stop.status)
    except SystemExit as stop:
        if stop.code:
            leave(f"{here} stops: {stop.code}")
        raise
    except BaseException as error:
        traceback.print_exc()
        leave(
            f"{here} stops: {type(error).__name__}. If another host stopped first, its log says "
            "why. The same command on every host resumes from the newest checkpoint."
        )


def asked_to_end(step: int) -> bool:
    """Whether some host was asked to end, by SIGTERM, as a preempted one is; all hosts agree.

    One that has joined others does not end by the signal: it goes on to a step at which all of them
    can save and stop. On a host alone the signal ends the process, and this is False.

    Args:
      step: grows from call to call, the same on every host.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def leave(message: str, code: int = 1) -> None:
    """Ends this process at once, whatever its threads wait for; does not return."""
    print(message, file=sys.stderr, flush=True)
    for call in _leaving:
        with contextlib.suppress(Exception):
            call()
    sys.stdout.flush()
    os._exit(code)
