"""The front door: `import fiberjax as fj`, what it gives and what it does not load."""

import ast
import inspect
import pathlib
import subprocess
import sys
import tomllib
from importlib import metadata

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fiberjax as fj
from fiberjax import gates, objective
from fiberjax.gates.configured import ConfiguredGate
from fiberjax.presets import PRESETS, preset

PACKAGE = pathlib.Path(fj.__path__[0])
LEVELS = ("trajectory", "group", "domain")

MASK = np.arange(6) < np.array([[6], [4], [5], [3]])
LAYOUT = fj.make_layout(
    MASK,
    {"group": np.array([0, 0, 1, 1]), "domain": np.array([0, 0])},
    state_id=np.arange(24).reshape(4, 6) // 2,
)
RNG = np.random.default_rng(0)
LOG_RATIO = RNG.normal(0, 0.2, (4, 6)).astype(np.float32)
ADVANTAGE = np.array([[1.0], [-1.0], [-1.0], [1.0]], np.float32) * MASK
OLD_LOG_PROB = -RNG.exponential(1, (4, 6)).astype(np.float32)
OF_RUNS = {
    *(
        "from_arrays",
        "from_jsonl",
        "from_parquet",
        "load_policy",
        "load_rollouts",
        "replay",
        "run_experiment",
    ),
}


def run_python(code):
    """Runs a program of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_presets_need_no_jax():
    run_python(
        "import sys, fiberjax; from fiberjax import presets; presets.preset('fiberpo')\n"
        "assert fiberjax.__version__ and fiberjax.presets is presets\n"
        "loaded = {'jax', 'numpy', 'ml_collections'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )


def test_the_mathematics_loads_neither_the_stack_of_a_run_nor_a_backend():
    run_python(
        "import sys, numpy as np, fiberjax as fj\n"
        f"for name in set(dir(fj)) - {OF_RUNS!r}: getattr(fj, name)\n"
        "fj.gate('fiberpo_domain', trajectory=0.1).replace(epsilon=0.2)\n"
        "fj.make_layout(np.ones((2, 3), bool), {'group': np.array([0, 0])})\n"
        "heavy = 'flax optax orbax tensorflow_datasets grain matplotlib tensorboardX rich'\n"
        "loaded = {*heavy.split(), 'ml_collections'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()"
    )


def test_every_name_of_the_front_door_is_there_documented_and_seen_by_type_checkers():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in ast.walk(block) if isinstance(node, ast.ImportFrom)]
    shown = {alias.asname for node in imports for alias in node.names}
    assert shown | {"__version__"} == set(dir(fj))
    for name in dir(fj):
        assert f"`{name}`" in fj.__doc__, name
        assert name == "__version__" or inspect.getdoc(getattr(fj, name)), name
    assert (PACKAGE / "py.typed").exists()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fiberjax' has no attribute 'gat'"):
        _ = fj.gat


def test_the_version_is_that_of_the_metadata():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert fj.__version__ == metadata.version("fiberjax") == project["project"]["version"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_gate_by_name_is_the_gate_of_its_config(name):
    gate = fj.gate(name)
    expected = ConfiguredGate(*gates.from_config(preset(name), LEVELS))
    assert gate.structure == expected.structure
    chex.assert_trees_all_equal(gate.budgets, expected.budgets)
    again = gate.replace()
    assert again.structure == gate.structure
    chex.assert_trees_all_equal(again.budgets, gate.budgets)
    value = gate(LOG_RATIO, ADVANTAGE, LAYOUT, old_log_prob=OLD_LOG_PROB)
    structure, budgets = expected.structure, expected.budgets
    wanted = structure(LOG_RATIO, ADVANTAGE, LAYOUT, budgets, old_log_prob=OLD_LOG_PROB)
    np.testing.assert_array_equal(value, wanted)


def test_overrides_by_level_by_option_and_of_the_levels_themselves():
    gate = fj.gate("fiberpo_domain", trajectory=0.1, domain=(0.2, 0.3), epsilon=0.4, recovery=True)
    by_level = gate.budgets["budgets"]
    np.testing.assert_allclose(by_level["trajectory"], [0.1, 0.1])
    np.testing.assert_allclose(
        by_level["group"], preset("fiberpo_domain")["levels"]["group"]["budget"]
    )
    np.testing.assert_allclose(by_level["domain"], [0.2, 0.3])
    np.testing.assert_allclose(gate.budgets["epsilon"], 0.4)
    assert gate.structure.recovery and not gate.structure.pessimistic
    other = gate.replace(levels={"turn": 0.1, "trajectory": 0.2}, dual_clip=3.0)
    np.testing.assert_allclose(other.budgets["budgets"]["turn"], [0.1, 0.1])
    assert set(other.budgets["budgets"]) == {"turn", "trajectory"}
    assert other.structure == gate.structure
    assert float(other.budgets["dual_clip"]) == 3 and gate.budgets["dual_clip"] is None
    assert dict(fj.gate("gspo", level="group").structure.options) == {"level": "group"}
    assert preset("fiberpo_domain")["levels"]["trajectory"]["budget"] == (0.11, 0.09)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("fibrepo", {}, r"gate preset 'fibrepo' does not exist; choose from .*'fiberpo'"),
        ("fiberpo", {"trajektory": 1}, r"preset 'fiberpo' has no 'trajektory'; .*'trajectory'"),
        ("fiberpo", {"group": 1}, r"preset 'fiberpo' has no 'group'; choose from \('trajectory'"),
        ("ppo", {"clip_hi": 1}, r"preset 'ppo' has no 'clip_hi'; choose from .*'clip_high'"),
        ("ppo", {"name": "apc"}, r"preset 'ppo' has no 'name'"),
        ("ppo", {"levels": {"turn": 1}}, r"preset 'ppo' has no 'levels'"),
        ("ppo", {"clip_high": -1}, r"gate\.clip_high = -1: expected a number above 0"),
        ("ppo", {"pessimistic": 1}, r"gate\.pessimistic = 1: choose from \(False, True\)"),
        ("gspo", {"level": "state"}, r"gate\.level = 'state': choose from \('trajectory',\)"),
        ("fiberpo", {"trajectory": 0}, r"gate\.levels\.trajectory\.budget = 0: expected"),
        ("fiberpo", {"levels": 3}, r"gate\.levels = 3: expected a dict from level to budget"),
        ("fiberpo", {"levels": {}}, r"gate\.order = \(\): expected a tuple of levels"),
    ],
)
def test_refusals_are_one_line_and_name_the_choices(name, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        fj.gate(name, **overrides)
    assert "\n" not in str(error.value) and "config." not in str(error.value)


def test_a_configured_gate_refuses_what_its_preset_does():
    with pytest.raises(ValueError, match=r"gate 'fgh' has no 'grop'; choose from .*'group'"):
        fj.gate("fiberpo_group").replace(grop=1.0)


def test_budgets_are_swept_batched_and_differentiated_without_another_trace():
    @jax.jit
    @chex.assert_max_traces(n=2)  # A batch of gates is a second shape.
    def value(gate):
        gated_ratio = gate(LOG_RATIO, ADVANTAGE, LAYOUT)
        return fj.surrogate(gated_ratio, ADVANTAGE, LAYOUT).value

    gate = fj.gate("fiberpo_group")
    swept = [gate.replace(trajectory=budget) for budget in (0.02, 0.05, 0.2)]
    values = [float(value(each)) for each in swept]
    assert len(set(values)) == 3
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *swept)
    np.testing.assert_allclose(jax.vmap(value)(batch), values, rtol=1e-6)
    slope = jax.grad(value)(swept[0]).budgets["budgets"]["trajectory"]
    step = 1e-3
    up, down = (gate.replace(trajectory=(0.02 + s, 0.02)) for s in (step, -step))
    np.testing.assert_allclose(slope[0], (value(up) - value(down)) / (2 * step), rtol=1e-2)


def test_another_gate_of_the_same_name_is_another_structure():
    def halved(log_ratio, advantage, layout):
        return jnp.exp(log_ratio) / 2

    def build(function):
        spec = gates.GateSpec(function, gates.tokenwise.importance, gates.tokenwise.never)
        return ConfiguredGate(*gates.from_config({"name": "mine"}, LEVELS, table={"mine": spec}))

    call = jax.jit(lambda gate: gate(LOG_RATIO, ADVANTAGE, LAYOUT))
    whole = call(build(gates.tokenwise.importance))
    np.testing.assert_allclose(call(build(halved))[MASK], whole[MASK] / 2, rtol=1e-6)


@pytest.mark.parametrize("weighting", objective.WEIGHTINGS)
@pytest.mark.parametrize("name", ["fiberpo_domain_pessimistic", "gspo", "dppo_tv"])
def test_coefficients_are_the_whole_integration_of_another_trainer(name, weighting):
    # A policy of two parameters; its log-probabilities are read in two micro-batches.
    features = RNG.normal(size=(4, 6, 2)).astype(np.float32)
    gate = fj.gate(name)
    options = dict(weighting=weighting, constant_length=6 if weighting == "constant" else None)
    given = dict(old_log_prob=OLD_LOG_PROB) if name == "dppo_tv" else {}

    def log_prob(params, rows):
        return OLD_LOG_PROB[rows] + jnp.tanh(features[rows] @ params)

    def value(params):
        log_ratio = log_prob(params, slice(None)) - OLD_LOG_PROB
        gated_ratio = gate(log_ratio, ADVANTAGE, LAYOUT, **given)
        return fj.surrogate(gated_ratio, ADVANTAGE, LAYOUT, **options).value

    params = jnp.array([0.1, -0.2])
    log_ratio = log_prob(params, slice(None)) - OLD_LOG_PROB
    coefficients = fj.coefficients(gate, log_ratio, ADVANTAGE, LAYOUT, **options, **given)
    assert coefficients.shape == MASK.shape and np.all(coefficients[~MASK] == 0)
    parts = [
        jax.grad(lambda params, rows: jnp.sum(coefficients[rows] * log_prob(params, rows)))(
            params, rows
        )
        for rows in (slice(0, 1), slice(1, 4))
    ]
    np.testing.assert_allclose(parts[0] + parts[1], jax.grad(value)(params), rtol=2e-5, atol=1e-7)


def test_coefficients_of_low_precision_are_wide():
    low = jnp.asarray(LOG_RATIO, jnp.bfloat16)
    gate = fj.gate("ppo")
    coefficients = fj.coefficients(gate, low, ADVANTAGE, LAYOUT)
    assert coefficients.dtype == jnp.float32
    wide = fj.coefficients(gate, low.astype(jnp.float32), ADVANTAGE, LAYOUT)
    np.testing.assert_array_equal(coefficients, wide)
