"""The programs of a run, compiled ahead of time for devices that need not exist, and read.

They are made by the functions that make them in a run, from the shapes that its arrays will have.
Memory includes what a run keeps on a device beside a program: the train state while it samples, the
reference policy of a KL penalty while it updates. Nothing runs; the figures are the compiler's.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fiberjax.experiment import Experiment
from fiberjax.parallel import mesh, shardings
from fiberjax.parallel.shardings import abstract
from fiberjax.plans import costs, hlo, overlap
from fiberjax.plans.topologies import Chip
from fiberjax.policy import TokenOutputs, cast_kernels, init_cache
from fiberjax.policy.drawing import stage_ends
from fiberjax.train import packing, rollout
from fiberjax.train.batch import Batch, batch_specs
from fiberjax.train.minibatches import whole_layout
from fiberjax.train.update import Knobs, make_step, objective_gradient


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program on one device.

    Attributes:
      name: a key of `PROGRAMS`.
      fits: whether there is room for it.
      peak_bytes: HBM that it needs, and what a run keeps beside it; as the compiler's refusal has
        it where it does not fit.
      limit_bytes: HBM that there is.
      memory: what fills it: name -> bytes.
      flops: matrix products, counted through loops; 0 where it does not fit.
      compiler_flops: the compiler's own count, elementwise operations too, but loop bodies once:
        what to read of a program without loops or products, such as the gate's.
      hbm_bytes: traffic with HBM.
      estimated_cycles: what the compiler expects it to take, but for kernels; see
        `costs.estimated_cycles`.
      ideal_seconds: arithmetic at the device's peak.
      hbm_seconds: traffic at the HBM's bandwidth.
      wire_seconds: what is sent at the bandwidth of the links.
      slow_bytes: what is sent over the network between slices, beside that.
      overlapped_bytes: of what is sent, what the schedule has beside matrix products; see
        `overlap.overlapped_bytes`.
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
    estimated_cycles: int = 0
    ideal_seconds: float = 0.0
    hbm_seconds: float = 0.0
    wire_seconds: float = 0.0
    slow_bytes: int = 0
    overlapped_bytes: float = 0.0
    collectives: Sequence[costs.Collective] = ()
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


def batch_rows(experiment: Experiment) -> int:
    """Rows of an optimizer batch before packing."""
    rows = experiment.rollout.prompts * experiment.rollout.samples
    return rows // experiment.training.minibatches


def packed_rows(experiment: Experiment) -> int | None:
    """Rows of the largest packed batch; None where the config packs none."""
    if not experiment.training.packing:
        return None
    shards = mesh.row_shards(experiment.mesh)
    rows = batch_rows(experiment) // shards
    smaller = packing.buckets(rows, packing.unit(rows, experiment.training.micro_batches))[:-1]
    return shards * smaller[-1] if smaller else None


def drawing_mesh(experiment: Experiment) -> Mesh:
    """The mesh as sampling splits rows over it."""
    return mesh.folded(experiment.mesh)


def drawn_rows(experiment: Experiment) -> int:
    """Rows of the sampler's largest call: of rollouts, evaluations or profiles."""
    drawn = experiment.rollout
    most = 0 if drawn.slots else drawn.max_rows
    shards = mesh.row_shards(drawing_mesh(experiment))
    return shards * max(rollout.rows_at_a_time(rows, most) for rows in _shard_rows(experiment))


def decoded_rows(experiment: Experiment) -> int:
    """Rows that are decoded at a time in it, which the cache holds: as many as there are slots."""
    rows, shards = drawn_rows(experiment), mesh.row_shards(drawing_mesh(experiment))
    return min(rows, shards * experiment.rollout.slots) if experiment.rollout.slots else rows


def _shard_rows(experiment: Experiment) -> list[int]:
    """Rows of a row shard that are drawn in rollouts, profiles and evaluations."""
    drawn, wanted = experiment.rollout, experiment.evaluation
    shards = mesh.row_shards(drawing_mesh(experiment))
    per_shard = [
        drawn.prompts * drawn.samples // shards,
        drawn.prompts * experiment.curriculum.profile_samples // shards,
        wanted.batch * wanted.samples // shards,
    ]
    return [rows for rows in per_shard if rows]


def abstract_batch(
    experiment: Experiment, packed: int | None = None, *, named: bool = False
) -> Batch:
    """Shapes of an optimizer batch on the mesh, as `minibatches.make_batches` makes them.

    Args:
      experiment: what to run.
      packed: rows that it is packed into; None leaves one trajectory a row.
      named: whether its completions are named, and no more than the window a row: fewer logits than
        where they are not, which a plan therefore counts.
    """
    rows, samples = batch_rows(experiment), experiment.rollout.samples
    window = experiment.window
    width, columns = window.prompt + window.completion, window.completion
    groups = rows // samples
    # Any cells will do: only the shapes of the tables are read.
    levels = dataclasses.replace(experiment.levels, cell=np.zeros(groups, np.int32))
    ones = np.ones((rows, columns), bool)
    layout: Any = whole_layout(
        ones,
        levels,
        np.arange(groups),
        turn=np.zeros((rows, columns), np.int32),
        turns=experiment.turns.limit,
        state_id=np.zeros((rows, columns), np.int32) if experiment.couples_states else None,
    )

    def shape(rows: int, columns: int, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((rows, columns), dtype)

    if packed is not None:
        rows, columns = packed, columns if named else width - 1
        ids = shape(rows, columns, jnp.int32)
        layout = dataclasses.replace(
            layout,
            mask=shape(rows, columns, jnp.bool_),
            cell_id=ids,
            state_id=ids if experiment.couples_states else None,
        )
    whole, part = shape(rows, width, jnp.int32), shape(rows, columns, jnp.float32)
    routes: Any = None
    if experiment.training.router_replay:
        policy = experiment.policy
        taken = (rows, width, policy.num_layers, policy.experts_per_token)
        routes = jax.ShapeDtypeStruct(taken, policy.route_dtype)
    at: Any = shape(rows, columns, jnp.int32) if named else None
    batch = Batch(whole, whole, whole, layout, part, part, part, part, routes, at)
    return _on_mesh(experiment.mesh, batch, batch_specs(batch))


def _on_mesh(device_mesh: Mesh, tree: Any, specs: Any) -> Any:
    if isinstance(specs, P):
        specs = jax.tree.map(lambda _: specs, tree)
    return jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(device_mesh, spec)
        ),
        tree,
        specs,
    )


def lower_step(experiment: Experiment, packed: int | None = None, fresh: bool | None = None) -> Any:
    """The train step on a batch of `abstract_batch`, traced for the experiment's mesh.

    Args:
      experiment: what to run.
      packed: rows that the batch is packed into; None leaves one trajectory a row.
      fresh: whether the batch was scored by this very policy; None leaves both in the program, as
        in a run.
    """
    state = experiment.abstract_state()
    shardings_of = jax.tree.map(lambda leaf: leaf.sharding, state)
    step: Any = make_step(
        experiment.policy,
        experiment.mesh,
        experiment.gate,
        experiment.optimizer,
        experiment.step,
        shardings_of,
    )
    base = None if experiment.lora is None else experiment.abstract_base()
    given = (state, abstract_batch(experiment, packed), experiment.knobs, base)
    if fresh is None:
        return step.lower(*given, jax.ShapeDtypeStruct((), np.bool_))
    out = (shardings_of, *(None,) * (1 + experiment.step.log_prob))
    known = jax.jit(lambda *of: step.__wrapped__(*of, fresh), donate_argnums=0, out_shardings=out)
    return known.lower(*given)


def sampling_params(experiment: Experiment) -> Any:
    """Shapes of the parameters that the sampler reads, on the mesh."""
    trained, base = experiment.abstract_state().params, experiment.abstract_base()
    params = jax.eval_shape(experiment.whole, trained, base)
    params = abstract(params, shardings.param_shardings(experiment.mesh, params))
    if mesh.stored_parts(experiment.mesh) == 1:
        return params
    cast = jax.eval_shape(lambda params: cast_kernels(params, experiment.policy), params)
    return abstract(cast, shardings.sampling_shardings(drawing_mesh(experiment), params))


def lower_sampler(experiment: Experiment) -> Any:
    """The sampler over the rows of `drawn_rows`, traced for the experiment's mesh.

    Of several turns the last one, before which all others stand.
    """
    rows, turns = drawn_rows(experiment), experiment.turns
    turn = turns.tokens(experiment.window.completion) + turns.reply
    shape = (rows, experiment.window.prompt + (turns.limit - 1) * turn)
    inputs = (
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.bool_),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)),
    )
    sampler = experiment.sampler(experiment.train)

    @jax.jit
    def draw(*given: Any, greedy: Any) -> Any:
        return dataclasses.replace(sampler, greedy=greedy).draw(*given)

    greedy = jax.ShapeDtypeStruct((), jnp.bool_)  # One program draws and takes the likeliest.
    placed = _on_mesh(drawing_mesh(experiment), inputs, mesh.ROWS)
    return draw.lower(sampling_params(experiment), *placed, greedy=greedy)


def plan_step(
    experiment: Experiment, chip: Chip, packed: int | None = None, fresh: bool | None = None
) -> Program:
    """Compiles the train step; arguments as `lower_step`."""
    state = experiment.abstract_state()
    batch = abstract_batch(experiment, packed)
    memory = {
        "parameters": device_bytes(state.params),
        **base_bytes(experiment),
        "optimizer": device_bytes(state.opt_state),
        "batch": device_bytes(batch),
    }
    return read_program(
        "train step" if packed is None else "packed step",
        lower_step(experiment, packed, fresh),
        chip,
        memory,
        resident=reference_bytes(experiment),
        donated=len(jax.tree.leaves(state)),
    )


def plan_packed_step(experiment: Experiment, chip: Chip) -> Program | None:
    """Compiles the train step on the largest packed batch; None where the config packs none."""
    rows = packed_rows(experiment)
    return None if rows is None else plan_step(experiment, chip, rows)


def plan_sampler(experiment: Experiment, chip: Chip) -> Program:
    """Compiles the sampler; its loops count as if every completion ran to the limit.

    With slots, they count for as many completions as there are slots.
    """
    config, window = experiment.policy, experiment.window
    params = sampling_params(experiment)
    turn = experiment.turns.tokens(window.completion)
    capacity = window.prompt + window.completion - 1
    looped = capacity if decoded_rows(experiment) < drawn_rows(experiment) else turn
    kept, rows = experiment.rollout.cache_dtype, decoded_rows(experiment)
    cache = jax.eval_shape(lambda: init_cache(config, rows, capacity, kept))
    tables = jax.tree.leaves((cache.key, cache.value))
    # By rows, and by heads where they divide.
    tensor = experiment.mesh.shape["tensor"]
    shards = mesh.row_shards(drawing_mesh(experiment))
    split = shards * (tensor if config.num_kv_heads % tensor == 0 else 1)
    memory = {
        "parameters": device_bytes(params),
        "key-value cache": sum(of.size * of.dtype.itemsize for of in tables) // split,
    }
    state = experiment.abstract_state()
    resident = reference_bytes(experiment) | {"optimizer": device_bytes(state.opt_state)}
    copied = mesh.stored_parts(experiment.mesh) > 1
    if copied:
        resident |= base_bytes(experiment)
    if copied or experiment.lora is not None:  # Of adapters, one of two matrices at least.
        resident["trained parameters"] = device_bytes(state.params)
    return read_program(
        "sampler",
        lower_sampler(experiment),
        chip,
        memory,
        resident=resident,
        default_trips=turn // len(stage_ends(looped)),
    )


def base_bytes(experiment: Experiment) -> dict[str, int]:
    """What the parameters that adapters adapt take of a device, if there are any."""
    if experiment.lora is None:
        return {}
    return {"frozen parameters": device_bytes(experiment.abstract_base())}


def reference_bytes(experiment: Experiment) -> dict[str, int]:
    """What the policy that a KL penalty holds to takes of a device, if it is one of its own."""
    if experiment.training.kl_coefficient == 0 or experiment.lora is not None:
        return {}
    return {"reference policy": device_bytes(experiment.abstract_state().params)}


def plan_gate(experiment: Experiment, chip: Chip) -> Program:
    """Compiles the gates and the objective alone: their share of the train step."""
    batch = abstract_batch(experiment)
    outputs = TokenOutputs(batch.old_log_prob, batch.old_log_prob)

    def gate(outputs: TokenOutputs, batch: Batch, knobs: Knobs) -> Any:
        return objective_gradient(
            experiment.mesh, experiment.gate, experiment.step, outputs, batch, knobs
        )

    lowered = jax.jit(gate).lower(outputs, batch, experiment.knobs)
    return read_program("gate", lowered, chip, {}, resident={})


def device_bytes(tree: Any) -> int:
    """Bytes on one device of a pytree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def read_program(
    name: str,
    lowered: Any,
    chip: Chip,
    memory: dict[str, int],
    *,
    resident: dict[str, int],
    default_trips: int = 1,
    donated: int = 0,
) -> Program:
    """Compiles a program and reads what it costs; a refusal of the compiler is a `Program` too.

    Args:
      name: of the program.
      lowered: traced for the devices.
      chip: theirs.
      memory: bytes of its arguments and of what it surely makes, by name.
      resident: bytes that a run keeps on a device beside it, by name.
      default_trips: see `hlo.walk`.
      donated: arguments whose memory it may reuse.
    """
    limit = chip.hbm // chip.devices
    memory = memory | resident
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error), sum(memory.values()) - sum(resident.values()))
        if needed is None:
            raise
        peak = needed + sum(resident.values())
        return Program(
            name, False, peak, limit, memory | {"temporaries": peak - sum(memory.values())}
        )
    stats = compiled.memory_analysis()
    peak = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
        + sum(resident.values())
    )
    memory["program"] = stats.generated_code_size_in_bytes
    memory["temporaries"] = peak - sum(memory.values())
    module = hlo.parse(compiled.as_text())
    flops = costs.flops(module, default_trips)
    traffic = costs.hbm_bytes(module, default_trips)
    exchanged = costs.collectives(module, default_trips)
    return Program(
        name=name,
        fits=peak <= limit,
        peak_bytes=peak,
        limit_bytes=limit,
        memory=memory,
        flops=flops,
        compiler_flops=(compiled.cost_analysis() or {}).get("flops", 0.0),
        hbm_bytes=traffic,
        estimated_cycles=costs.estimated_cycles(module, default_trips),
        ideal_seconds=flops * chip.devices / chip.peak_flops,
        hbm_seconds=traffic * chip.devices / chip.hbm_bandwidth,
        wire_seconds=sum(one.wire_bytes for one in exchanged) / chip.ici_bandwidth,
        slow_bytes=costs.slow_bytes(module, default_trips),
        overlapped_bytes=overlap.overlapped_bytes(
            module, chip.ici_bandwidth * chip.devices / chip.peak_flops, default_trips
        ),
        collectives=exchanged,
        temporaries=costs.largest(module),
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


# The programs of a plan, in the order that people read them.
PROGRAMS: Mapping[str, Callable[[Experiment, Chip], Program | None]] = {
    "train step": plan_step,
    "packed step": plan_packed_step,
    "sampler": plan_sampler,
    "gate": plan_gate,
}
