"""Plans of pods: what fits on a slice, and refusals with numbers."""

import dataclasses
import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from fiberjax.experiment import Experiment
from fiberjax.objective import EDGES
from fiberjax.plans import costs, plan, topologies
from fiberjax.policy import TransformerConfig, num_params

ROOT = Path(__file__).parents[2]


def make(arguments: list[str], topology: str, output: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "experiments/plan.py", f"--topology={topology}"]
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [*command, f"--output={output}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
    )


def has_compiler() -> bool:
    try:
        import libtpu  # noqa: F401
    except ImportError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="libtpu is not installed")


def test_a_token_meets_its_own_experts_alone():
    """As many parameters as with no other experts, but for the router's view of them."""
    shape = dict(vocab_size=11, embed_dim=16, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=8)
    shape |= dict(mlp_dim=24)
    config = TransformerConfig(num_experts=8, experts_per_token=2, **shape)
    alone = dataclasses.replace(config, num_experts=2)
    assert plan.active_params(config) == num_params(alone) + 6 * 3 * 16
    untied = dataclasses.replace(config, tie_embeddings=False)
    assert plan.active_params(untied) == plan.active_params(config)


def assert_tables_only(gate: dict, groups: int, domains: int) -> None:
    """The gate's program adds level tables and scalars over devices and moves nothing else."""
    for collective in gate["collectives"]:
        assert collective["kind"] == "all-reduce", collective
        # At most two tables of the groups with two channels, one of the domains, the scalars, and
        # what the quantiles count: two of two channels of three levels.
        counted = 12 * (EDGES.size + 1)
        assert collective["num_bytes"] <= 4 * (4 * groups + 2 * domains + 64 + counted), collective
        for dims in re.findall(r"\[([\d,]*)\]", collective["shapes"]):
            size = math.prod(int(n) for n in dims.split(",") if n)
            assert size <= 2 * max(groups, domains) or size == EDGES.size, collective


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(  # One chip of each make.
    "topology", ["v5e:2x2", pytest.param("v5p:2x2x1", marks=pytest.mark.long)]
)
def test_tiny_plan(tmp_path, topology):
    output = tmp_path / "plan.json"
    options = ["--config.mesh.data=2", "--config.mesh.fsdp=-1", "--config.rollout.prompts=16"]
    done = make(
        ["--config=tests/tiny.py", *options, "--config.evaluation.batch=8"], topology, output
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(output.read_text())
    by_name = {program["name"]: program for program in found["programs"]}
    step, sampler, gate = (by_name[name] for name in ("train step", "sampler", "gate"))
    assert found["fits"] and "packed step" not in by_name
    assert step["aliased"][0] == step["aliased"][1] > 0
    assert step["flops"] > 0.8 * found["ideal_flops"]
    # Parameters are gathered before sampling, not at every token.
    assert sampler["wire_bytes"] == 0
    assert gate["collectives"]
    assert_tables_only(gate, groups=8, domains=5)


@pytest.mark.long
@needs_compiler
def test_wrong_mesh_is_an_error_with_numbers(tmp_path):
    done = make(
        ["--config=tests/tiny.py", "--config.mesh.data=3"], "v5e:2x2", tmp_path / "plan.json"
    )
    assert done.returncode == 1
    assert "data=3, fsdp=1, sequence=1, tensor=1 does not fit 4 devices" in done.stderr
    done = make(["--config=tests/tiny.py"], "v5e:3x3", tmp_path / "plan.json")
    assert done.returncode == 1
    assert "v5e has no slice '3x3'" in done.stderr


# Config -> generation -> slices, smallest first: the first does not fit, the rest do. None where a
# generation's smallest slice fits. The whole table takes hours of CPU: FIBERJAX_PLANS=all
# runs it, FIBERJAX_PLANS=v5e one generation. Without it one entry, a refusal, stands for the rest:
# a fit of this size takes two minutes, and tiny plans fit too.
MATRIX = {
    "qwen2_5_0_5b": {
        "v5e": (None, "1x1", "2x2", "4x4", "16x16"),
        "v6e": (None, "1x1", "4x4", "16x16"),
        "v5p": (None, "2x2x1", "4x4x4", "8x8x16"),
        "v4": (None, "2x2x1", "4x4x4", "8x8x16"),
    },
    "qwen2_5_1_5b": {
        "v5e": ("1x1", "2x2", "4x4", "16x16"),
        "v6e": ("1x1", "2x2", "16x16"),
        "v5p": (None, "2x2x1", "8x8x16"),
        "v4": (None, "2x2x1", "8x8x16"),
    },
    "qwen2_5_7b": {
        "v5e": ("2x4", "4x4", "8x8", "16x16"),
        "v6e": ("2x2", "2x4", "8x8", "16x16"),
        "v5p": (None, "2x2x1", "4x4x4", "8x8x16", "16x16x16"),
        "v4": ("2x2x1", "2x2x2", "4x4x4", "8x8x16"),
    },
    "qwen3_1_7b": {
        "v5e": (None, "2x2", "8x8", "16x16"),
        "v6e": (None, "2x2", "16x16"),
        "v5p": (None, "2x2x1", "8x8x16"),
        "v4": (None, "2x2x1", "8x8x16"),
    },
}
ALWAYS = ("qwen2_5_7b-v4-2x2x1",)
CHOSEN = os.environ.get("FIBERJAX_PLANS", "")


def wanted() -> list:
    return [
        pytest.param(config, f"{generation}:{shape}", k, id=name)
        for config, rows in MATRIX.items()
        for generation, shapes in rows.items()
        for k, shape in enumerate(shapes)
        for name in (f"{config}-{generation}-{shape}",)
        if shape is not None
        and (CHOSEN in ("all", generation) or (CHOSEN == "" and name in ALWAYS))
    ]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("config", "topology", "k"), wanted())
def test_published_shapes(tmp_path, config, topology, k):
    """Weak scaling: one prompt group a minibatch on each row shard, whatever the slice."""
    fits = k > 0
    tensor = importlib.import_module(f"configs.{config}").get_config().mesh.tensor
    shards = topologies.parse_topology(topology).num_devices // tensor
    output = tmp_path / f"{config}_{topology.replace(':', '_')}.json"
    options = [f"--config.rollout.prompts={4 * shards}"]
    # Parameters in 64 parts at most, and no more than leave whole tiles.
    options += [f"--config.mesh.data={max(1, shards // 64)}"]
    options += [f"--config.evaluation.batch={max(256, shards)}"]
    if k > 2 or CHOSEN == "":  # Packed steps differ least where there is most room.
        options += ["--programs=train step,sampler,gate"]
    done = make([f"--config=configs/{config}.py", *options], topology, output)
    assert output.exists(), done.stderr[-2000:]
    found = json.loads(output.read_text())
    assert found["fits"] == fits, done.stdout
    if not fits:
        assert done.returncode == 1
        assert found["advice"]
        assert any(p["peak_bytes"] > p["limit_bytes"] for p in found["programs"])
        return
    by_name = {program["name"]: program for program in found["programs"]}
    step, sampler, gate = (by_name[name] for name in ("train step", "sampler", "gate"))
    for updates in (step, by_name.get("packed step", step)):
        assert updates["aliased"][0] == updates["aliased"][1]
        # Matrices are gathered whole for the forward pass, never multiplied part by part: the sum
        # of the parts would pass through memory at every part.
        for exchange in updates["collectives"]:
            # Those of no source move the edges of gradients that were scattered in padded parts.
            source = exchange["source"]
            assert exchange["kind"] != "collective-permute" or not source or "transpose" in source
    # A step of the sampler reads once what its stage needs of the cache, .69 of it on average:
    # there is no room for another pass over it.
    parameters, cache = (sampler["memory"][name] for name in ("parameters", "key-value cache"))
    assert tensor > 1 or sampler["wire_bytes"] == 0
    assert sampler["hbm_bytes"] < 1.6 * 3071 * (parameters + 0.69 * cache)
    assert bool(gate["collectives"]) == (shards > 1)
    assert_tables_only(gate, groups=shards, domains=5)
    assert gate["hbm_bytes"] < 1e-4 * step["hbm_bytes"]


def test_advice_names_numbers():
    program = plan.Program("train step", False, 20, 10, {"parameters": 5, "optimizer": 3})

    @dataclasses.dataclass
    class Part:
        prompts: int = 8
        samples: int = 4
        minibatches: int = 1
        micro_batches: int = 1
        chunk: int = 512
        remat: str = "none"
        compute_dtype: str = "float32"

    class Stub:
        rollout = training = policy = Part()
        mesh = jax.make_mesh(
            (4, 1, 1, 1), ("data", "fsdp", "sequence", "tensor"), devices=jax.devices()[:4]
        )

    stub: Experiment = Stub()  # type: ignore[assignment]
    advice = "\n".join(plan.advise(stub, program))
    for expected in ("micro_batches = 8 instead of 1", "remat = 'full'", "mesh.data = 4", "chips"):
        assert expected in advice
    assert "training.chunk = 0 instead of 512" in advice
    fits = dataclasses.replace(program, fits=True, peak_bytes=4)
    assert plan.advise(stub, fits) == []
    Stub.training.micro_batches = 8
    assert plan.advise(stub, fits) == []  # Sends nothing.
    gathered = costs.Collective("all-gather", "f32[8]", 4, 1, 32, "")
    (line,) = plan.advise(stub, dataclasses.replace(fits, collectives=[gathered]))
    assert "train step: training.micro_batches = 4 instead of 8 sends less" in line
    full = dataclasses.replace(fits, collectives=[gathered], peak_bytes=6)
    assert plan.advise(stub, full) == []
