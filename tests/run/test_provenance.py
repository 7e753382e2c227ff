"""What made a run, as it says, and what is said where it is repeated."""

import dataclasses
import json
import shutil

import pytest
import tiny

from fiberjax.run import identity, provenance


@pytest.fixture
def source(tmp_path, build):
    """The folder of a run that started twice."""
    folder = tmp_path / "source"
    identity.claim(folder, build(), tiny.get_config().to_json_best_effort())
    provenance.record(folder, 0)
    provenance.record(folder, 3)
    return folder


def edit(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def test_every_start_says_what_it_was_made_with(source):
    first, second = provenance.read(source)
    assert (first["iteration"], second["iteration"]) == (0, 3)
    assert first["versions"]["jax"] == provenance.importlib.metadata.version("jax")
    assert first["devices"]["platform"] == "cpu" and first["devices"]["processes"] == 1
    assert first["lock"] is None or len(first["lock"]) == 64
    assert first["git"] is None or len(first["git"]["commit"]) == 40
    assert provenance._git(source) is None
    (source / provenance.FILE).write_text("{")
    assert provenance.read(source) == []


def test_what_is_another_is_said_in_one_line(source, tmp_path, capsys):
    config = provenance.repeated(source, tmp_path / "new")
    assert config.to_json_best_effort() == tiny.get_config().to_json_best_effort()

    def older(values):
        values["starts"][0]["versions"]["jax"] = "0.1"
        values["starts"][0]["host"] = "another"
        values["starts"][0]["git"] = {"commit": "abc", "clean": False}

    edit(source / "run.json", older)
    change = {"iteration": 5, "option": "seed", "before": 0, "after": 1}
    edit(source / "config.json", lambda values: values.update(changes=[change]))
    capsys.readouterr()
    provenance.repeated(source, tmp_path / "new")
    (line,) = capsys.readouterr().out.splitlines()
    assert "versions.jax was 0.1, is " in line and "host was" not in line
    assert "git.commit was abc" in line or "git was" in line
    assert "its code had changes that no commit has" in line
    assert "its seed was changed at iteration 5, and is 1 here" in line
    (source / "run.json").unlink()
    provenance.repeated(source, tmp_path / "new")
    assert "it does not say what made it" in capsys.readouterr().out


def test_a_run_is_not_repeated_over_itself_or_other_contents(source, tmp_path, build):
    with pytest.raises(ValueError, match="are the same folder"):
        provenance.repeated(source, tmp_path / "." / "source")
    provenance.check_contents(source, build())
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    built = build()
    tasks = dataclasses.replace(built.tasks, file=str(rows))
    with pytest.raises(ValueError, match=r"cannot be repeated: tasks\.file/.* is new"):
        provenance.check_contents(source, dataclasses.replace(built, tasks=tasks))
    with pytest.raises(ValueError, match="the plugin mine has changed"):
        provenance.check_contents(source, dataclasses.replace(built, plugin_digests={"mine": "a"}))
    shutil.rmtree(source)
    with pytest.raises(ValueError, match=r"holds no config\.json of a run"):
        provenance.repeated(source, tmp_path / "new")
