"""The campaign itself: a run that is lost is told, and one that is not the same at the end."""

import dataclasses
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import campaign
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiberjax.run import kept_files, migrations, rollouts

# As a run behaves, in a tenth of a second.
PROGRAM = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[-1].partition("=")[2])
done = run / "checkpoints" / "3" / "host"
done.mkdir(parents=True, exist_ok=True)
if {begun}:
    (run / "config.json").write_text("1")
while time.process_time() < {seconds}:
    pass
(run / "metrics.jsonl").write_text(json.dumps({{"step": 1, "a": {value}, "timing/b": 3}}))
(run / "evaluation.json").write_text("1")
(done / "metadata").write_text("{{}}")
sys.exit({status})
"""


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """Tries a kind on a program; what is told, and the first difference at the end."""
    monkeypatch.setattr(campaign, "OPTIONS", ())
    contents = campaign.contents

    def without_state(run):
        for name, value in contents(run):
            yield name, value
            if name == "host":
                return

    monkeypatch.setattr(campaign, "contents", without_state)

    def of(kind, *, seconds=0.0, value="5", status=0, begun=False):
        def made(name, **values):
            file = tmp_path / name
            file.write_text(
                PROGRAM.format(**dict(seconds=0, value=5, status=0, begun=False) | values)
            )
            return [sys.executable, str(file)]

        draw = random.Random(0)
        whole = campaign.Trial(made("whole"), tmp_path, tmp_path, tmp_path / "run", 0.2, draw)
        whole.finish()
        program = made("program", seconds=seconds, value=value, status=status, begun=begun)
        folder = tmp_path / "trial"
        folder.mkdir()
        trial = campaign.Trial(program, tmp_path, folder, whole.run, 0.2, draw)
        return campaign.KINDS[kind](trial), campaign.difference(trial.run, whole.run)

    # As the command has it: what a shell starts in the background ignores interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield of
    signal.signal(signal.SIGINT, before)


def test_a_run_that_survives_is_the_same(tried):
    told, another = tried("kill", seconds=0.4)
    assert told.startswith("after ") and another == ""


def test_a_host_that_is_paused_or_stops_for_good(tried, monkeypatch):
    monkeypatch.setattr(campaign, "HOSTS", 2)
    monkeypatch.setattr(campaign.random.Random, "uniform", lambda self, a, b: 0.1)
    told, another = tried("pause", seconds=0.3)
    assert told.endswith("after 0.1 s, for 0.1 s") and another == ""


def test_rows_are_the_same_whatever_folders_their_config_names(tmp_path):
    table = pa.table({"a": [1.0, float("nan"), -0.0]})
    files = [tmp_path / f"{of}.parquet" for of in range(3)]
    for of, file in enumerate(files):
        pq.write_table(table.replace_schema_metadata({"config": str(of)}), file)
    assert campaign.rows(files[0]) == campaign.rows(files[1])
    pq.write_table(pa.table({"a": [1.0, float("nan"), 0.0]}), files[2])
    assert campaign.rows(files[0]) != campaign.rows(files[2])


def test_a_clock_jumps_once_the_time_has_come(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import sys, time; print(time.time() - float(sys.argv[1]) > 80_000)")
    file = pathlib.Path(campaign.__file__).with_name("jumping.py")
    for seconds, expected in ((0, "True"), (1000, "False")):
        command = [sys.executable, file, str(seconds), "1", program, str(time.time())]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_one_that_ends_as_another_is_told(tried):
    assert tried("kill", value="6")[1] == "metrics of 1"


@pytest.mark.parametrize(
    ("kind", "told"),
    [("kill", "status 3"), ("damage", "it was not seen"), ("lose", "expected one line with")],
)
def test_one_that_is_lost_is_told(tried, kind, told):
    with pytest.raises(campaign.Lost, match=told):
        tried(kind, status=3 if kind == "kill" else 0)


def test_a_signal_that_ends_the_process_is_survived(tried):
    told, another = tried("ask", seconds=0.4)
    assert ": status -" in told and another == ""


def test_a_signal_that_ends_it_in_the_middle_is_no_end(tried):
    with pytest.raises(campaign.Lost, match="status -"):
        tried("ask", seconds=0.4, begun=True)


def test_damage_of_rollouts_must_be_seen(tried, tmp_path, monkeypatch):
    about = {"iteration": 2, "levels": ["trajectory"], "rows": 0, "columns": 4, "updates": []}
    about |= {"config": {}, "config_version": migrations.VERSION}
    rows = kept_files.described(kept_files.SCHEMA.empty_table(), about)
    rollouts.write_whole("it", rows, tmp_path / "run" / "rollouts" / "000002.parquet")
    told, another = tried("rollouts")
    assert ": refused" in told and another == ""
    shutil.rmtree(tmp_path / "trial")
    expected = kept_files.load_rollouts(tmp_path / "run")
    read = iter([expected, dataclasses.replace(expected, meta={})])
    monkeypatch.setattr(kept_files, "load_rollouts", lambda file: next(read))
    with pytest.raises(campaign.Lost, match="it was not seen"):
        tried("rollouts")


@pytest.mark.parametrize(
    "kinds", ["kill,damage", pytest.param("ask,twice", marks=pytest.mark.long)]
)
def test_runs_that_are_forked_survive(kinds, capsys):
    assert campaign.main(["--count", "1", "--kinds", kinds]) == 0
    assert "| all | 2 | 2 | 2 |" in capsys.readouterr().out
