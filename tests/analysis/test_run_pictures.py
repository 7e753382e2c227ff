"""A run at a glance: chosen panels, and samples that are not obeyed."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiberjax.analysis import run_pictures
from fiberjax.run import rollouts, writers


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with writers.open_writers(folder, resume_step=None) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"reward/mean": step / 4, "actor/entropy": 1 / step})
    return folder


def test_panels_are_those_that_a_run_has_and_each_has_a_legend(run):
    picture = run_pictures.curves(run)
    assert [ax.get_title(loc="left") for ax in picture.axes] == ["Reward", "Policy entropy"]
    assert all(ax.get_legend() for ax in picture.axes)
    assert picture.axes[0].lines[-1].get_ydata().tolist() == [0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("panels", "message"),
    [(("rewards",), "panel 'rewards' does not exist; choose from"), (("kl",), "no metrics of the")],
)
def test_panels_that_are_not_there_are_told(run, panels, message):
    with pytest.raises(ValueError, match=message):
        run_pictures.curves(run, panels)


def sample(iteration, completion, reward, **changed):
    row = {
        "iteration": iteration,
        "split": rollouts.HELD_OUT,
        "domain": "sort",
        "prompt": "S:21=",
        "completion": completion,
        "answer": "12",
        "extracted": None,
        "reward": reward,
        "length": 3,
        "finished": True,
        "prompt_index": 0,
        "sample": 0,
    }
    return row | changed


def test_the_same_prompts_stand_side_by_side_and_texts_are_no_markup(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    rows = {
        "000000-held_out": [sample(0, "2|1 [x](y)", 0.0), sample(0, "", 0.0, prompt_index=7)],
        "000004-held_out": [sample(4, "12", 1.0)],
        "000004-train": [sample(4, "no", 0.0, split=rollouts.TRAIN)],
    }
    for name, of in rows.items():
        pq.write_table(pa.Table.from_pylist(of, rollouts.SCHEMA), folder / f"{name}.parquet")
    head, _, *lines = run_pictures.before_and_after(tmp_path).splitlines()
    assert "after 4 iterations" in head
    assert lines == [r"| sort | S:21= | 12 | 2\|1 \[x\](y) | 0 | 12 | 1 |"]


def test_a_run_without_samples_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"holds no|has no samples"):
        run_pictures.before_and_after(tmp_path)
