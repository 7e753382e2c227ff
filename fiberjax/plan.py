"""The pod plan: what a config costs on a TPU slice, before a chip is rented.

The very train step and sampler of a run are compiled ahead of time for the slice, and the compiled
programs are read: memory a chip against the chip's limit, arithmetic counted through loops, and
every exchange between chips. Nothing runs; the figures are the compiler's and deterministic.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fiberjax import hlo, mesh, options
from fiberjax.experiment import Experiment, load_domains
from fiberjax.layout import make_layout
from fiberjax.policy import (
    Samples,
    TokenOutputs,
    cast_kernels,
    init,
    init_cache,
    num_params,
    sample,
)
from fiberjax.tasks import Domain, Vocabulary
from fiberjax.topologies import Chip, Topology
from fiberjax.update import (
    Batch,
    Knobs,
    TrainState,
    batch_specs,
    make_step,
    objective_gradient,
)


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program on one device.

    Attributes:
      name: a key of `PROGRAMS`.
      fits: whether the compiler found room.
      peak_bytes: HBM that it needs; of the compiler's refusal where it does not fit.
      limit_bytes: HBM that there is.
      memory: what fills it: name -> bytes.
      flops: matrix products, counted through loops; 0 where it does not fit.
      compiler_flops: the compiler's own count, elementwise operations too, but loop bodies once:
        what to read of a program without loops or products, such as the gate's.
      hbm_bytes: traffic with HBM.
      ideal_seconds: arithmetic at the device's peak.
      collectives: largest traffic first.
      temporaries: the largest arrays made on the way: (bytes, shape, source).
      aliased: results that reuse donated memory, and how many could.
    """

    name: str
    fits: bool
    peak_bytes: int
    limit_bytes: int
    memory: Mapping[str, int]
    flops: int = 0
    compiler_flops: float = 0.0
    hbm_bytes: int = 0
    ideal_seconds: float = 0.0
    collectives: Sequence[hlo.Collective] = ()
    temporaries: Sequence[tuple[int, str, str]] = ()
    aliased: tuple[int, int] = (0, 0)

    def by_kind(self) -> dict[str, dict[str, float]]:
        """Runs and bytes sent by a device, for each kind of collective."""
        kinds: dict[str, dict[str, float]] = {}
        for collective in self.collectives:
            entry = kinds.setdefault(collective.kind, {"times": 0, "wire_bytes": 0.0})
            entry["times"] += collective.times
            entry["wire_bytes"] += collective.wire_bytes
        return kinds

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends."""
        return sum(collective.wire_bytes for collective in self.collectives)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config on a topology.

    Attributes:
      topology: as it was named.
      num_chips: of it.
      mesh: sizes of the mesh axes.
      num_params: of the policy.
      tokens: of an optimizer batch, prompts included.
      ideal_flops: 6 N D of a batch on one device, N the parameters that multiply every token.
      programs: the train step, the sampler, and the gate and objective of the step alone.
      advice: what to change where it does not fit.
    """

    topology: str
    num_chips: int
    mesh: Mapping[str, int]
    num_params: int
    tokens: int
    ideal_flops: float
    programs: Sequence[Program]
    advice: Sequence[str]

    @property
    def fits(self) -> bool:
        """Whether every program fits."""
        return all(program.fits for program in self.programs)


PROGRAMS = ("train step", "sampler", "gate")


def make_plan(
    experiment: Experiment, topology: Topology, programs: Sequence[str] = PROGRAMS
) -> Plan:
    """Compiles the programs of an experiment, whose mesh is over the topology's devices.

    Args:
      experiment: from `experiment.from_config` with `topologies.describe_devices`.
      topology: the slice.
      programs: which to compile, of `PROGRAMS`.

    Raises:
      ValueError: a program that does not exist.
    """
    if unknown := [name for name in programs if name not in PROGRAMS]:
        raise ValueError(f"there is no program {unknown[0]!r} to plan; choose from {PROGRAMS}")
    make = dict(zip(PROGRAMS, (plan_step, plan_sampler, plan_gate), strict=True))
    made = [make[name](experiment, topology.chip) for name in programs]
    config, window = experiment.policy, experiment.window
    count = num_params(config)
    matrices = count
    if not config.tie_embeddings:  # Looking a token up multiplies nothing.
        matrices -= config.vocab_size * config.embed_dim
    tokens = batch_rows(experiment) * (window.prompt + window.completion)
    return Plan(
        topology=str(topology),
        num_chips=topology.num_chips,
        mesh=dict(experiment.mesh.shape),
        num_params=count,
        tokens=tokens,
        ideal_flops=6.0 * matrices * tokens / topology.num_devices,
        programs=made,
        advice=[line for program in made for line in advise(experiment, program)],
    )


def named_domains(
    tasks: options.Tasks, window: options.Window, vocabulary: Vocabulary
) -> tuple[tuple[Domain, ...], tuple[Domain, ...]]:
    """Domains without examples for `from_config`: a plan needs their number alone."""
    if tasks.file:
        return load_domains(tasks, window, vocabulary)
    names = [name for name, knobs in tasks.domains.items() if knobs is not None]
    domains = tuple(Domain(name, (), lambda prompt, answer, completion: 0.0) for name in names)
    return domains, domains


def batch_rows(experiment: Experiment) -> int:
    """Rows of an optimizer batch."""
    rollout, training = experiment.rollout, experiment.training
    return rollout.prompts * rollout.samples // training.minibatches


def abstract_state(experiment: Experiment) -> tuple[TrainState, TrainState]:
    """Shapes of the train state, and their shardings."""

    def make() -> TrainState:
        params = init(experiment.policy, jax.random.key(0))
        return TrainState(params, experiment.optimizer.init(params), jnp.zeros((), jnp.int32))

    state = jax.eval_shape(make)
    return state, mesh.state_shardings(experiment.mesh, state)


def abstract_batch(experiment: Experiment) -> Batch:
    """Shapes of an optimizer batch, as `rollout.make_batches` makes them, on the mesh."""
    rows, samples = batch_rows(experiment), experiment.rollout.samples
    window = experiment.window
    num_domains = len(experiment.train)
    layout = make_layout(
        np.ones((rows, window.completion), bool),
        {
            "group": np.arange(rows) // samples,
            "domain": np.arange(rows // samples) % num_domains,
        },
        num_cells={"domain": num_domains},
        axis_names={"group": mesh.ROW_AXES},
    )
    whole: Any = jax.ShapeDtypeStruct((rows, window.prompt + window.completion), jnp.int32)
    part: Any = jax.ShapeDtypeStruct((rows, window.completion), jnp.float32)
    batch = Batch(whole, whole, whole, layout, part, part, part, part)
    return _on_mesh(experiment, batch, batch_specs(batch))


def _on_mesh(experiment: Experiment, tree: Any, specs: Any) -> Any:
    if isinstance(specs, P):
        specs = jax.tree.map(lambda _: specs, tree)
    return jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(experiment.mesh, spec)
        ),
        tree,
        specs,
    )


def lower_step(experiment: Experiment) -> Any:
    """The train step, traced for the experiment's mesh."""
    state, shardings = abstract_state(experiment)
    step: Any = make_step(
        experiment.policy,
        experiment.mesh,
        experiment.gate,
        experiment.optimizer,
        experiment.step,
        shardings,
    )
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )
    return step.lower(placed, abstract_batch(experiment), experiment.knobs)


def sampling_params(experiment: Experiment) -> Any:
    """Shapes of the parameters that the sampler reads, on the mesh."""
    params = abstract_state(experiment)[0].params
    if experiment.mesh.shape["fsdp"] == 1:
        shardings = mesh.param_shardings(experiment.mesh, params)
    else:
        params = jax.eval_shape(lambda params: cast_kernels(params, experiment.policy), params)
        shardings = mesh.sampling_shardings(experiment.mesh, params)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        params,
        shardings,
    )


def lower_sampler(experiment: Experiment) -> Any:
    """The sampler over the rollouts of an iteration, traced for the experiment's mesh."""
    config, rollout, window = experiment.policy, experiment.rollout, experiment.window
    rows = rollout.prompts * rollout.samples
    params = sampling_params(experiment)

    def draw(params: Any, prompts: jax.Array, prompt_mask: jax.Array, keys: jax.Array) -> Samples:
        return sample(
            config,
            params,
            prompts,
            prompt_mask,
            keys,
            max_new_tokens=window.completion,
            eos_id=experiment.vocabulary.eos_id,
            pad_id=experiment.vocabulary.pad_id,
            temperature=rollout.temperature,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            constrain=mesh.constrain(experiment.mesh),
            attend=mesh.attend(experiment.mesh, config),
        )

    shape = (rows, window.prompt)
    inputs = (
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.bool_),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)),
    )
    return jax.jit(draw).lower(params, *_on_mesh(experiment, inputs, mesh.ROWS))


def plan_step(experiment: Experiment, chip: Chip) -> Program:
    """Compiles the train step."""
    state, shardings = abstract_state(experiment)
    memory = {
        "parameters": device_bytes(state.params, shardings.params),
        "optimizer": device_bytes(state.opt_state, shardings.opt_state),
        "batch": sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(abstract_batch(experiment))
        ),
    }
    return read_program(
        "train step", lower_step(experiment), chip, memory, donated=len(jax.tree.leaves(state))
    )


def plan_sampler(experiment: Experiment, chip: Chip) -> Program:
    """Compiles the sampler; its loop counts as if every completion ran to the limit."""
    config, window = experiment.policy, experiment.window
    params = sampling_params(experiment)
    rows = experiment.rollout.prompts * experiment.rollout.samples
    capacity = window.prompt + window.completion - 1
    cache = jax.eval_shape(lambda: init_cache(config, rows, capacity))
    # By rows, and by heads where they divide.
    tensor = experiment.mesh.shape["tensor"]
    split = mesh.row_shards(experiment.mesh) * (tensor if config.num_kv_heads % tensor == 0 else 1)
    memory = {
        "parameters": device_bytes(params, jax.tree.map(lambda leaf: leaf.sharding, params)),
        "key-value cache": (cache.key.size + cache.value.size) * cache.key.dtype.itemsize // split,
    }
    lowered = lower_sampler(experiment)
    return read_program("sampler", lowered, chip, memory, default_trips=window.completion - 1)


def plan_gate(experiment: Experiment, chip: Chip) -> Program:
    """Compiles the gates and the objective alone: their share of the train step."""
    batch = abstract_batch(experiment)
    outputs = TokenOutputs(batch.old_log_prob, batch.old_log_prob)

    def gate(outputs: TokenOutputs, batch: Batch, knobs: Knobs) -> Any:
        return objective_gradient(
            experiment.mesh, experiment.gate, experiment.step, outputs, batch, knobs
        )

    return read_program("gate", jax.jit(gate).lower(outputs, batch, experiment.knobs), chip, {})


def device_bytes(tree: Any, shardings: Any) -> int:
    """Bytes of a pytree on one device."""
    sizes = jax.tree.map(
        lambda leaf, sharding: (
            math.prod(sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        ),
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def read_program(
    name: str,
    lowered: Any,
    chip: Chip,
    memory: dict[str, int],
    *,
    default_trips: int = 1,
    donated: int = 0,
) -> Program:
    """Compiles a program and reads what it costs; a refusal of the compiler is a `Program` too."""
    limit = chip.hbm // chip.devices
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error), sum(memory.values()))
        if needed is None:
            raise
        memory["temporaries"] = needed - sum(memory.values())
        return Program(name, False, needed, limit, memory)
    stats = compiled.memory_analysis()
    peak = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    memory["program"] = stats.generated_code_size_in_bytes
    memory["temporaries"] = peak - sum(memory.values())
    module = hlo.parse(compiled.as_text())
    flops = hlo.flops(module, default_trips)
    return Program(
        name=name,
        fits=peak <= limit,
        peak_bytes=peak,
        limit_bytes=limit,
        memory=memory,
        flops=flops,
        compiler_flops=(compiled.cost_analysis() or {}).get("flops", 0.0),
        hbm_bytes=hlo.hbm_bytes(module, default_trips),
        ideal_seconds=flops * chip.devices / chip.peak_flops,
        collectives=hlo.collectives(module, default_trips),
        temporaries=hlo.largest(module),
        aliased=(module.aliased, donated),
    )


def needed_bytes(message: str, arguments: int) -> int | None:
    """What the compiler's refusal says a program needs; None where it is about something else."""
    for pattern, beside in (
        (r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", 0),
        (r"required for HLO temporaries \(([\d.]+)([KMGT])\)", arguments),
    ):
        found = re.search(pattern, message)
        if found:
            unit = 1024 ** ("KMGT".index(found.group(2)) + 1)
            return int(float(found.group(1)) * unit) + beside
    return None


def advise(experiment: Experiment, program: Program) -> list[str]:
    """What to change so that a program fits, most useful first; nothing where it does."""
    if program.fits:
        return []
    training, policy = experiment.training, experiment.policy
    shape = experiment.mesh.shape
    kept = sum(program.memory.get(name, 0) for name in ("parameters", "optimizer"))
    advice = []
    if program.name == "sampler":
        rows = experiment.rollout.prompts * experiment.rollout.samples
        advice.append(
            f"fewer rollouts at a time: rollout.prompts × rollout.samples = {rows} rows keep "
            f"{shown(program.memory.get('key-value cache', 0))} of keys and values a device"
        )
    else:
        rows = batch_rows(experiment) // mesh.row_shards(experiment.mesh)
        if training.micro_batches < rows:
            advice.append(
                f"training.micro_batches = {rows} instead of {training.micro_batches}: a device "
                f"then works on one of its {rows} rows at a time"
            )
        if policy.remat != "full":
            advice.append(f"policy.remat = 'full' instead of {policy.remat!r}")
        if policy.compute_dtype != "bfloat16":
            advice.append("policy.compute_dtype = 'bfloat16'")
        if training.chunk > 128:
            advice.append(f"training.chunk = 128 instead of {training.chunk}")
        if kept > program.limit_bytes // 4:
            advice.append("optimizer.moment_dtype = 'bfloat16', if it is not yet")
    if kept > program.limit_bytes // 4 and shape["data"] > 1:
        advice.append(
            f"a larger mesh.fsdp in place of mesh.data = {shape['data']}: parameters and optimizer "
            f"fill {shown(kept)} a device"
        )
    if shape["tensor"] == 1:
        advice.append("mesh.tensor = 2 or 4: heads, MLP and logits are split too")
    advice.append("more chips, or a generation with more memory")
    return [f"{program.name}: {line}" for line in advice]


def shown(num_bytes: float) -> str:
    """Bytes for people: `7.30 GB`, in powers of 1024."""
    for unit in ("B", "kB", "MB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GB"


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-like values."""
    result = dataclasses.asdict(plan)
    result["fits"] = plan.fits
    for entry, program in zip(result["programs"], plan.programs, strict=True):
        entry["collectives_by_kind"] = program.by_kind()
        entry["wire_bytes"] = program.wire_bytes
        entry["collectives"] = [
            dataclasses.asdict(c) | {"wire_bytes": c.wire_bytes} for c in program.collectives[:12]
        ]
    return result


def to_text(plan: Plan, chip: Chip) -> str:
    """The plan for people."""
    mesh_shown = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [
        f"{plan.topology}: {plan.num_chips} chips, mesh {mesh_shown}",
        f"policy of {plan.num_params / 1e9:.3f} B parameters, {plan.tokens:,} tokens a batch",
    ]
    for program in plan.programs:
        verdict = "fits" if program.fits else "DOES NOT FIT"
        lines += [
            "",
            f"{program.name}: {verdict}: {shown(program.peak_bytes)} of "
            f"{shown(program.limit_bytes)} HBM a device",
        ]
        lines += [f"  {name:<18} {shown(size):>10}" for name, size in program.memory.items()]
        if not program.hbm_bytes:  # Refused by the compiler.
            continue
        lines.append(
            f"  {program.flops or program.compiler_flops:.3e} FLOPs a device, "
            f"{program.ideal_seconds:.3g} s at peak; "
            f"{shown(program.hbm_bytes)} of HBM traffic, "
            f"{program.hbm_bytes * chip.devices / chip.hbm_bandwidth:.3g} s"
        )
        if program.name == "train step":
            lines.append(
                f"  6 N D is {plan.ideal_flops:.3e}: the step does "
                f"{program.flops / plan.ideal_flops:.2f} times that"
            )
            lines.append(f"  donated state reused: {program.aliased[0]} of {program.aliased[1]}")
        seconds = program.wire_bytes / chip.ici_bandwidth
        lines.append(f"  collectives: {shown(program.wire_bytes)} sent a device, {seconds:.3g} s")
        for kind, entry in program.by_kind().items():
            lines.append(
                f"    {kind:<18} {entry['times']:>7} times, {shown(entry['wire_bytes']):>10}"
            )
        lines.append("  largest temporaries:")
        lines += [
            f"    {shown(size):>10}  {shape}  {source[-70:]}"
            for size, shape, source in program.temporaries[:5]
        ]
    lines += ["", "It fits." if plan.fits else "It does not fit. What to change:"]
    lines += [f"  - {line}" for line in plan.advice]
    return "\n".join(lines)
