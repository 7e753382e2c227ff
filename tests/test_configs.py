"""Configs are data: no jax, every preset builds, overrides of the command line arrive."""

import importlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tiny

from configs import gates as presets
from fiberjax import experiment, gates, model_folder
from fiberjax.experiment import KEYS
from fiberjax.policy import num_params
from fiberjax.tasks import loading

LEVELS = ("trajectory", "group", "domain")
ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
QUICKSTART = str(ROOT / "configs" / "quickstart.py")
BUDGET = "--config.gate.levels.trajectory.budget"


def test_configs_do_not_import_jax():
    imports = "; ".join(f"import configs.{name}" for name in NAMES)
    code = f"import sys; {imports}; sys.exit('jax' in sys.modules)"
    assert "quickstart" in NAMES
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gates"])
def test_every_config_has_all_sections(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert set(config) == set(KEYS)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_gate_preset_builds_and_can_be_chosen_on_the_command_line(name):
    config = tiny.from_command_line(config=f"{QUICKSTART}:{name}")
    gate, budgets = gates.from_config(config.gate, LEVELS)
    assert gate.name == presets.PRESETS[name]["name"]
    assert all(
        np.all(np.asarray(b) > 0) for b in budgets.values() if not isinstance(b, dict | None)
    )


def test_presets_are_copies():
    presets.get_gate("fiberpo").levels.trajectory.budget = (9.0, 9.0)
    assert presets.get_gate("fiberpo").levels.trajectory.budget != (9.0, 9.0)


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="gate preset 'fibrepo' does not exist; choose from"):
        presets.get_gate("fibrepo")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0.2", (0.2, 0.2)), ("(0.1,0.08)", (0.1, 0.08)), ("1", (1, 1)), ("(0.3,)", (0.3, 0.3))],
)
def test_a_budget_is_overridden_by_a_number_or_a_pair(value, expected):
    config = tiny.from_command_line(f"{BUDGET}={value}", config=QUICKSTART)
    _, budgets = gates.from_config(config.gate, LEVELS)
    np.testing.assert_allclose(budgets["budgets"]["trajectory"], expected, rtol=1e-6)


@pytest.mark.parametrize("value", ["0", "-0.1", "(0.1,0.0)", "(0.1,0.1,0.1)", "nan", "wide"])
def test_a_budget_that_is_none_is_refused_by_its_path(value):
    config = tiny.from_command_line(f"{BUDGET}={value}", config=QUICKSTART)
    with pytest.raises(ValueError, match=r"config\.gate\.levels\.trajectory\.budget = .*expected"):
        gates.from_config(config.gate, LEVELS)


def test_other_overrides_of_a_gate():
    config = tiny.from_command_line("--config.gate.epsilon=0.1", "--config.gate.dual_clip=3.0")
    _, budgets = gates.from_config(config.gate, LEVELS)
    np.testing.assert_allclose([budgets["epsilon"], budgets["dual_clip"]], [0.1, 3.0])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("gsm8k_qwen2_5_0_5b", 494_032_768),
        ("gsm8k_qwen3_1_7b", 1_720_574_976),
        ("gsm8k_gemma3_1b", 999_885_952),
        ("gsm8k_llama_3_2_1b", 1_235_814_400),
    ],
)
def test_recipes_have_the_published_shapes_without_their_files(name, size):
    """As `plan.py --shape` builds them; the sizes are those of the published checkpoints."""
    config = importlib.import_module(f"configs.{name}").get_config()
    assert config.model.folder and config.model.system and config.tasks.test_file
    bare = model_folder.without_files(config)
    assert num_params(experiment.from_config(bare, None, loading.named_domains).policy) == size
    assert config.model.folder and config.tasks.file  # A new one.
