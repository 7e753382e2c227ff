"""Trust regions at several scales at once for language-model policy optimisation.

    import fiberjax as fj

    layout = fj.make_layout(mask, {"group": group_id})
    advantage = fj.advantages.grpo(reward, group_id, num_groups)[:, None] * mask
    gate = fj.gate("fiberpo_group_pessimistic", trajectory=0.1)
    gated_ratio = gate(log_prob - old_log_prob, advantage, layout)
    loss = -fj.surrogate(gated_ratio, advantage, layout).value

What a researcher with arrays in hand wants stands here:

* `make_layout`: where tokens, trajectories, groups and any cells above them stand.
* `gate`: a gate by the name of a preset, with budgets and options of one's own; callable, and a
  pytree of its budgets. `presets` is the table, plain data.
* `surrogate`: the objective to maximise. `coefficients`: its gradient, one number a token, which
  is all that another trainer needs: `-(coefficients * log_prob).sum()` is its loss.
* `advantages`, `kl`, `objective`: advantages from rewards, KL estimates and entropies, weightings.
  `mismatch`: weights and masks for a sampler that is not quite the old policy.
* `probes`, `diagnostics`, `trust_region`: Jacobians and what each level adds; what is worth
  logging; how far TRPO would go.
* `gates`, `layout`, `segments`: what all of it is made of.
* `run_experiment`: a whole run from a config, in this process.
* `load_rollouts`, `from_arrays`, `from_parquet`, `from_jsonl`: what an iteration of a run was
  trained on, and the same of arrays and token dumps of other trainers. `load_policy`: a checkpoint
  of a run by number. `replay`: what any objectives make of them, on identical data.
* `__version__`.

A name is imported when it is first used: `import fiberjax` imports nothing, `fiberjax.presets`
needs no jax, and the mathematics needs nothing but jax, NumPy and chex.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fiberjax import advantages as advantages
    from fiberjax import diagnostics as diagnostics
    from fiberjax import gates as gates
    from fiberjax import kl as kl
    from fiberjax import layout as layout
    from fiberjax import mismatch as mismatch
    from fiberjax import objective as objective
    from fiberjax import presets as presets
    from fiberjax import probes as probes
    from fiberjax import segments as segments
    from fiberjax import trust_region as trust_region
    from fiberjax.analysis.foreign import from_jsonl as from_jsonl
    from fiberjax.analysis.foreign import from_parquet as from_parquet
    from fiberjax.analysis.replay import replay as replay
    from fiberjax.gates.configured import gate as gate
    from fiberjax.layout import make_layout as make_layout
    from fiberjax.objective import coefficients as coefficients
    from fiberjax.objective import surrogate as surrogate
    from fiberjax.run.kept import from_arrays as from_arrays
    from fiberjax.run.kept_files import load_rollouts as load_rollouts
    from fiberjax.run.notebook import run_experiment as run_experiment
    from fiberjax.run.policies import load_policy as load_policy

    __version__: str

_MODULES = (
    *("advantages", "diagnostics", "gates", "kl", "layout", "mismatch", "objective", "presets"),
    *("probes", "segments", "trust_region"),
)
_FUNCTIONS = {
    "coefficients": "fiberjax.objective",
    "from_arrays": "fiberjax.run.kept",
    "from_jsonl": "fiberjax.analysis.foreign",
    "from_parquet": "fiberjax.analysis.foreign",
    "gate": "fiberjax.gates.configured",
    "load_policy": "fiberjax.run.policies",
    "load_rollouts": "fiberjax.run.kept_files",
    "make_layout": "fiberjax.layout",
    "replay": "fiberjax.analysis.replay",
    "run_experiment": "fiberjax.run.notebook",
    "surrogate": "fiberjax.objective",
}


if not TYPE_CHECKING:  # A type checker knows the names above, and no other.

    def __getattr__(name: str) -> Any:
        """Imports a name at its first use."""
        value: Any
        if name in _MODULES:
            value = importlib.import_module(f"fiberjax.{name}")
        elif name in _FUNCTIONS:
            value = getattr(importlib.import_module(_FUNCTIONS[name]), name)
        elif name == "__version__":
            from importlib import metadata

            value = metadata.version("fiberjax")
        else:
            raise AttributeError(f"module 'fiberjax' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """The names of the front door."""
    return sorted((*_MODULES, *_FUNCTIONS, "__version__"))
