r"""Freezes `run_v0/`: a run of a version that saved no version number, stopped half-way.

    git worktree add --detach ../before 6a378bc
    PYTHONPATH=../before:../before/tests python tests/data/make_run_v0.py tests/data/run_v0

The config is `tests/tiny.py` of that commit, with an estimator that has another name today. Two of
four iterations are done; `whole.jsonl` beside them is what that commit makes of all four. Paths are
relative, and what names the machine (event files, the notes of a commit) is left out.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

CHANGED = {
    "tasks.data_dir": "data",
    "warm_start.directory": "warm_starts",
    "warm_start.steps": 120,
    "checkpoint.every": 2,
    "advantage": "pass_at_k",
}


def main(destination: Path) -> None:
    """Runs until the third iteration, keeps what is left, and runs to the end."""
    import jax
    import tiny

    from fiberjax import experiment, loop, trainer

    config = tiny.get_config()
    config.update_from_flattened_dict(CHANGED)
    iterate = trainer.Trainer.iterate

    def interrupted(self, state, stream, iteration):
        if iteration == 2:
            raise KeyboardInterrupt
        return iterate(self, state, stream, iteration)

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        built = experiment.from_config(config, jax.devices()[:1])
        config_json = config.to_json_best_effort(indent=2)
        trainer.Trainer.iterate = interrupted
        try:
            loop.run(built, "run", config_json)
        except KeyboardInterrupt:
            shutil.rmtree(destination, ignore_errors=True)
            shutil.copytree("run", destination, ignore=shutil.ignore_patterns("events.*"))
        for note in destination.rglob("commit_success.txt"):
            note.write_text("committed\n")
        trainer.Trainer.iterate = iterate
        loop.run(built, "run", config_json)
        shutil.copy("run/metrics.jsonl", destination / "whole.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
