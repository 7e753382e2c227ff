"""Plugins: a user's file adds names to the tables, or is refused in one line."""

import importlib
import sys

import numpy as np
import pytest
import tiny

from fiberjax import advantages, experiment, gates, plugins
from fiberjax.tasks import VERIFIERS

OWN = """
import jax.numpy as jnp
from fiberjax.gates import Budget, GateSpec, Option, tokenwise

def double(log_ratio, advantage, layout, *, budgets, factor, form):
    return factor * jnp.exp(log_ratio)

double_gate = GateSpec(
    double,
    tokenwise.importance,
    tokenwise.never,
    {"factor": Budget(2.0, "ratio")},
    {"form": Option("plain", ("plain", "fancy"))},
)
GATES = {"double": double_gate}
REWARDS = {"half": lambda prompt, answer, completion: 0.5 * (answer in completion)}
ESTIMATORS = {"halved": lambda reward, group_id, num_groups: 0.5 * reward}
"""


@pytest.fixture
def write(tmp_path):
    """Writes a plugin; what was imported is forgotten afterwards."""
    before = set(sys.modules)

    def make(text, name="own_plugin.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    yield make
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    plugins._imported.cache_clear()


@pytest.fixture
def from_plugins(make_config, one_device):
    """Builds the tiny experiment with plugins and other changed options."""

    def make(*names, gate=None, **values):
        config = make_config()
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
        config.plugins = names
        if gate is not None:
            with config.ignore_type():
                config.gate = gate
        return experiment.from_config(config, one_device)

    return make


def test_a_file_adds_gates_rewards_and_estimators(write, from_plugins, tmp_path):
    rows = tmp_path / "own.jsonl"
    rows.write_text("".join(f'{{"prompt": "{a}=", "answer": "{a}"}}\n' for a in range(100, 160)))
    before = [dict(table) for table in (gates.GATES, VERIFIERS, advantages.ESTIMATORS)]
    built = from_plugins(
        write(OWN),
        gate={"name": "double", "factor": 3.0, "form": "fancy"},
        advantage="halved",
        tasks__file=str(rows),
        tasks__verifier="half",
    )
    assert built.gate.name == "double" and built.gate.options == (("form", "fancy"),)
    np.testing.assert_allclose(built.knobs.budgets["factor"], 3.0)
    assert {domain.verify("", "a", "cat") for domain in built.train} == {0.5}
    np.testing.assert_array_equal(built.estimate(np.ones(2), np.zeros(2, int), 1), 0.5)
    assert built.plugin_digests.keys() == {str(tmp_path / "own_plugin.py")}
    assert before == [gates.GATES, VERIFIERS, advantages.ESTIMATORS]  # Nothing registered itself.


def test_a_plugins_gate_is_checked_like_any_other(write, from_plugins):
    path = write(OWN)
    for gate, message in (
        ({"name": "double", "facto": 3.0}, r"config\.gate\.facto = 3\.0 is not an option of"),
        ({"name": "double", "factor": 0.0}, r"config\.gate\.factor = 0\.0: expected a number"),
        ({"name": "double", "form": "odd"}, r"config\.gate\.form = 'odd': choose from"),
    ):
        with pytest.raises(ValueError, match=message):
            from_plugins(path, gate=gate)


def test_tables_may_also_be_given_as_arguments(make_config, one_device):
    config = make_config()
    config.advantage = "zero"
    with config.ignore_type():
        config.gate = {"name": "mine"}
    built = experiment.from_config(
        config,
        one_device,
        gate_table={"mine": gates.GATES["ppo"]},
        estimator_table={"zero": lambda reward, group_id, num_groups: 0 * reward},
    )
    assert built.gate.spec is gates.GATES["ppo"]
    np.testing.assert_array_equal(built.estimate(np.ones(2), np.zeros(2, int), 1), 0)


def test_a_file_is_imported_once_under_its_own_name(write):
    path = write("import builtins\ncount = 1 + globals().get('count', 0)\nREWARDS = {'a': len}\n")
    first, second = plugins.load(path), plugins.load(path)
    assert first == second and first.tables["REWARDS"]["a"] is len
    assert sys.modules["own_plugin"].count == 1
    assert first.tables["GATES"] == {}


def test_a_module_that_python_finds_is_a_plugin_too(write, tmp_path, monkeypatch):
    (tmp_path / "own_package").mkdir()
    write("", "own_package/__init__.py")
    path = write("REWARDS = {'a': len}\n", "own_package/rewards.py")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    loaded = plugins.load("own_package.rewards")
    assert loaded.tables["REWARDS"] == {"a": len}
    assert loaded.digest == plugins.load(path).digest


def test_a_file_that_changed_since_it_was_imported_is_refused(write):
    path = write("REWARDS = {'a': len}\n")
    plugins.load(path)
    write("REWARDS = {'a': len, 'b': len}\n")
    with pytest.raises(ValueError, match=r"own_plugin\.py changed since this process imported it"):
        plugins.load(path)


BAD = [
    ("x = 1\n", r"own_plugin\.py defines none of GATES, REWARDS, ESTIMATORS"),
    ("x = 1\n\ny = x / 0\n", r"own_plugin\.py, line 3: ZeroDivisionError: division by zero"),
    ("x = 1\ny = (\n", r"own_plugin\.py, line 2: SyntaxError: '\(' was never closed"),
    ("def f():\n    raise OSError('a\\nb')\nf()\n", r"plugin\.py, line 2: OSError: a b"),
    ("import nowhere_at_all\n", r"plugin\.py, line 1: ModuleNotFoundError: No module"),
    ("GATES = {'a': len}\n", r"GATES\['a'\] must be a GateSpec; got <built-in"),
    ("GATES = [1]\n", r"GATES must be a dict by name; got \[1\]"),
    ("REWARDS = {'a': 1.0}\n", r"REWARDS\['a'\] must be a function; got 1\.0"),
    ("ESTIMATORS = {1: len}\n", r"ESTIMATORS\[1\] must be a function"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_bad_file_is_refused_in_one_line(write, text, message):
    path = write(text)
    with pytest.raises(ValueError, match=message) as error:
        plugins.load(path)
    assert "\n" not in str(error.value) and path in str(error.value)
    assert "own_plugin" not in sys.modules or "SyntaxError" not in message


def test_a_plugin_that_does_not_exist_is_refused(tmp_path):
    for name in (str(tmp_path / "none.py"), "no_such_module", "no_such.module", str(tmp_path)):
        with pytest.raises(ValueError, match=rf"config\.plugins: {name} does not exist"):
            plugins.load(name)


def test_a_name_of_another_module_is_refused(write):
    with pytest.raises(ValueError, match=r"json\.py: 'json' is the name of another module"):
        plugins.load(write("REWARDS = {'a': len}\n", "json.py"))


@pytest.mark.parametrize("names", [(1,), ("a.py", "a.py")])
def test_what_is_no_list_of_plugins_is_refused(names):
    with pytest.raises(ValueError, match=r"config\.plugins (must be files|names 'a\.py' twice)"):
        plugins.load_all(names)


def test_a_name_that_is_taken_is_refused_with_both_sources(write, from_plugins):
    ours = write("REWARDS = {'exact': len}\n")
    with pytest.raises(ValueError, match=r"own_plugin\.py has 'exact' in REWARDS, .* fiberjax"):
        from_plugins(ours)
    one = write("ESTIMATORS = {'mine': len}\n", "plugin_one.py")
    two = write("ESTIMATORS = {'mine': len}\n", "plugin_two.py")
    with pytest.raises(ValueError, match=r"plugin_two\.py has 'mine' in .*plugin_one\.py"):
        from_plugins(one, two)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("('a.py',)", ("a.py",)), ("('a.py','b.c')", ("a.py", "b.c")), ("()", ())],
)
def test_plugins_and_writers_are_overridden_on_the_command_line(value, expected):
    config = tiny.from_command_line(f"--config.plugins={value}", "--config.writers=('jsonl',)")
    assert tuple(config.plugins) == expected and tuple(config.writers) == ("jsonl",)
