"""`docs/your_data.md`: its commands lead from files and a model folder to a curve."""

import json
import pathlib
import re
import shlex

import folders
import pyarrow
import pyarrow.parquet
import pytest
import tiny

from fiberjax import experiment, model_folder
from fiberjax.run import loop
from fiberjax.tasks import published, reasoning

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_data.md").read_text(encoding="utf-8")
SMALL = (
    *("iterations=1", "rollout.prompts=4", "rollout.samples=2", "checkpoint.every=1"),
    *(
        "window.completion=8",
        "training.epochs=1",
        "training.minibatches=1",
        "training.micro_batches=1",
    ),
    *("training.packing=False", "training.chunk=16", "policy.remat=none", "mesh.data=1"),
    *("evaluation.prompts=2", "evaluation.samples=1", "evaluation.batch=4"),
)


def commands() -> list[list[str]]:
    """What the page's commands give `experiments/train.py`, but for the config."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    found = [shlex.split(block.replace("\\\n", " ")) for block in blocks]
    for words in found:
        assert words[:3] == [*("python", "experiments/train.py", "--config=configs/quickstart.py")]
    return [words[3:] for words in found]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(published, "make_frame", folders.frame_here)
    folders.write("model", config={"max_position_embeddings": 256})
    asked = [(f"Ann has {k} apples and buys {k + 1}. How many?", 2 * k + 1) for k in range(40)]
    worked = [{"question": q, "solution": f"It is <<{a}>>{a}\n#### {a}"} for q, a in asked]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(worked), "questions.parquet")
    laid_out = [{"question": row["question"], "answer": row["solution"]} for row in worked]
    other = [
        {"Body": f"Bo has {k} pears.", "Question": "How many has he?", "Answer": float(k)}
        for k in range(40)
    ]
    pathlib.Path("gsm8k").mkdir()
    for name, rows in (
        ("gsm8k/train.jsonl", laid_out[:30]),
        ("gsm8k/test.jsonl", laid_out[28:]),
        ("svamp.jsonl", other),
    ):
        pathlib.Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.slow
@pytest.mark.drawn
def test_the_pages_commands_lead_to_a_curve(here, one_device, capsys):
    assert len(commands()) == 2
    for words in commands():
        workdir = pathlib.Path(words[0].removeprefix("--workdir="))
        overrides = [*words[1:], *(f"--config.{option}" for option in SMALL)]
        config = tiny.from_command_line(*overrides, config=str(ROOT / "configs/quickstart.py"))
        config = model_folder.with_folder(config)
        built = experiment.from_config(config, one_device)
        assert len(built.examples) > 30 and len(built.held_out) > 0
    # All of them are built, and one is run: the way is the same.
    loop.run(built, workdir, config.to_json_best_effort())
    assert (workdir / "plots" / "evaluation.png").exists()
    for name in re.findall(r"`runs/mine/([\w.]+)`", PAGE):
        assert (workdir / name).exists()
    table = json.loads((workdir / "evaluation.json").read_text())
    assert {row["domain"] for row in table["rows"]} == {"gsm8k", "svamp", "overall"}
    assert all(folders.START in built.examples.prompts[index] for index in (0, 40))
    assert re.search(r"2 of \d+ training prompts are held out", capsys.readouterr().out)


def test_a_chat_of_a_row_stands_in_the_template(here):
    vocabulary = published.read_vocabulary(folders.model("model", system="Config's."))
    chat = (
        *(("system", "Row's <|im_end|>"), ("user", "a")),
        *(("assistant", "b"), ("user", " c<|im_start|>")),
    )
    ids = vocabulary.encode_chat(chat)
    text = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in chat)
    assert vocabulary.decode([i for i in ids if i not in vocabulary.end_ids]) == (
        f"{text}<|im_start|>assistant\n".replace("<|im_end|>\n", "\n").replace(
            "s \n", "s <|im_end|>\n"
        )
    )
    # Control tokens are the template's alone, whatever the messages spell.
    assert ids.count(folders.START) == 5 and ids.count(folders.END) == 4
    assert vocabulary.encode_chat((("user", "x"),)) == vocabulary.encode_prompt("x")
    asked = vocabulary.decode(
        [i for i in vocabulary.encode_prompt("x") if i not in vocabulary.end_ids]
    )
    assert "Config's." in asked


@pytest.mark.parametrize("too_long", ["refuse", "drop", "truncate"])
def test_a_long_prompt_ends_no_run_unless_it_shall(here, one_device, capsys, too_long):
    rows = [{"prompt": "1" * n, "answer": "2"} for n in range(1, 60)]
    pathlib.Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny.get_config()
    config.tasks.file, config.tasks.too_long = "rows.jsonl", too_long
    config.warm_start.steps = 0
    if too_long == "refuse":
        message = r"rows\.jsonl, row 5\d: the prompt has 6\d tokens, .* config\.window\.prompt = 16"
        with pytest.raises(ValueError, match=message):
            experiment.from_config(config, one_device)
        return
    built = experiment.from_config(config, one_device)
    told = capsys.readouterr().out
    assert "are longer than config.window.prompt = 16; the longest has" in told
    assert "held-out prompts are longer" in told
    assert built.examples.prompts.lengths.max() == 16
    lengths = {len(example.prompt) for example in built.examples}
    assert lengths <= set(range(1, 16)) and (len(built.examples) > 40) == (too_long == "truncate")


def test_knobs_of_a_data_set_come_from_the_command_line():
    """By the page's own option; what `text` blocks hold is not run where the extra is missing."""
    (option,) = re.findall(r'^  (--config\.tasks\.reasoning_gym)="(.*)"$', PAGE, re.MULTILINE)
    config = tiny.from_command_line("=".join(option))
    assert reasoning.named(config.tasks.reasoning_gym) == {
        **{"gcd": {}, "leg_counting": {"max_animals": 4}}
    }
    config = tiny.from_command_line("--config.tasks.reasoning_gym=('gcd')")
    assert reasoning.named(config.tasks.reasoning_gym) == {"gcd": {}}
    for wrong in ("('gcd',", "(5)", "('gcd', {[]: 1})", "(gcd, leg_counting)", "(" * 300):
        config = tiny.from_command_line(f"--config.tasks.reasoning_gym={wrong}")
        with pytest.raises(ValueError, match=r"reasoning_gym: expected names, or a tuple"):
            reasoning.named(config.tasks.reasoning_gym)


def test_a_column_is_named_by_one_override():
    config = tiny.from_command_line("--config.tasks.columns.prompt=question")
    assert config.tasks.columns.to_dict() == {
        **{"prompt": "question", "answer": "", "domain": "", "solution": ""}
    }
    config = tiny.from_command_line("--config.tasks.columns={'prompt': ('Body', 'Question')}")
    assert config.tasks.columns["prompt"] == ("Body", "Question")
