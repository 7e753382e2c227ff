"""Compiled programs that are kept: where, by whom, and what goes wrong without harm."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from fiberjax.parallel import compiled

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
PROGRAM = """
import jax
from fiberjax.parallel import compiled

found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event.rpartition("/")[2]))
compiled.SECONDS = 0.0
compiled.keep()
print(jax.jit(lambda x: x + 1)(1), found.count("cache_hits"))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where programs would be kept, and a jax that was told nothing of it."""
    before = {name: jax.config.values[name] for name in NAMES}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    jax.config.update(NAMES[0], None)
    yield tmp_path / "fiberjax" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache_alone(home):
    folder = compiled.keep()
    assert folder is not None and folder.parent == home
    assert [jax.config.values[name] for name in NAMES] == [str(folder), compiled.SECONDS]
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("told", ["", "/elsewhere"])
def test_who_tells_jax_a_folder_or_none_is_obeyed(home, told):
    jax.config.update(NAMES[0], told)
    assert compiled.keep() is None
    assert jax.config.values[NAMES[0]] == told and not home.exists()


def test_several_processes_keep_nothing_by_themselves(home, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert compiled.keep() is None and jax.config.values[NAMES[0]] is None


def test_a_cache_that_cannot_be_written_is_passed_over(home, monkeypatch):
    home.parent.parent.joinpath("fiberjax").write_text("a file where the folder should be")
    assert compiled.keep() is None and jax.config.values[NAMES[0]] is None


def test_a_full_disk_keeps_nothing(home, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiled.tempfile, "TemporaryFile", full)
    assert compiled.keep() is None and jax.config.values[NAMES[0]] is None


def test_what_others_own_is_not_executed(home, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: -1)
    assert compiled.keep() is None and jax.config.values[NAMES[0]] is None


def test_what_was_not_read_for_long_is_removed(home):
    folder = compiled.keep()
    for name, days in {"old": compiled.DAYS + 1, "new": compiled.DAYS - 1}.items():
        (folder / name).write_text("")
        then = (folder / name).stat().st_mtime - days * 24 * 3600
        os.utime(folder / name, (then, then))
    jax.config.update(NAMES[0], None)
    compiled.keep()
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_what_compiles_is_timed():
    before = compiled.seconds()
    double = jax.jit(lambda x: 2 * x)
    double(3.0)
    first = compiled.seconds()
    assert first > before
    double(3.0)
    assert compiled.seconds() == first


def test_the_next_process_reads_what_one_compiled_and_compiles_what_is_damaged(tmp_path):
    without = {name: of for name, of in os.environ.items() if not name.startswith("JAX_")}
    environment = without | {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": str(Path(compiled.__file__).parents[2]),
    }

    def result() -> str:
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return ran.stdout.strip()

    assert [result(), result()] == ["2 0", "2 1"]
    (program,) = tmp_path.rglob("*-cache")
    program.write_bytes(program.read_bytes()[:100])
    assert result() == "2 0"
