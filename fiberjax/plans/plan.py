"""A plan: every program of a config on a TPU slice, whether it fits, and what to change if not."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fiberjax.experiment import Experiment
from fiberjax.parallel import mesh
from fiberjax.plans.programs import PROGRAMS, Program, batch_rows, decoded_rows, drawing_mesh
from fiberjax.plans.topologies import Topology
from fiberjax.policy import TransformerConfig, num_params


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
      programs: the train step, the step on a packed batch where the config packs, the sampler, and
        the gate and objective of the step alone.
      advice: what to change where it does not fit, or where it does and could send less.
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

    @property
    def utilisation(self) -> tuple[float, float] | None:
        """Model-FLOP utilisation of the train step, at least and at most; None where none fits.

        The seconds of 6 N D at the device's peak, over those of the step. At least, they are the
        sum of the seconds of its arithmetic at peak, of its traffic at the HBM's bandwidth and of
        what it sends at that of the links, as if one waited for the other; at most, they are the
        longest of the three, as if all went at once. Below both lies what this does not count:
        products that miss the peak, operations by element, latency, hosts. No accelerator
        calibrated it.
        """
        for program in self.programs:
            seconds = (program.ideal_seconds, program.hbm_seconds, program.wire_seconds)
            if program.name == "train step" and program.flops:
                model = program.ideal_seconds * self.ideal_flops / program.flops
                return model / sum(seconds), model / max(seconds)
        return None


def make_plan(
    experiment: Experiment, topology: Topology, programs: Sequence[str] = tuple(PROGRAMS)
) -> Plan:
    """Compiles the programs of an experiment, whose mesh is over the topology's devices.

    Args:
      experiment: from `experiment.from_config` with `topologies.describe_devices`.
      topology: the slice.
      programs: which to compile, keys of `PROGRAMS`; one that the config does not need is left out.

    Raises:
      ValueError: a program that does not exist; or devices that only sample.
    """
    if experiment.rollout.devices:
        raise ValueError(
            f"config.rollout.devices = {experiment.rollout.devices} is not planned: plan what "
            "samples and what updates as slices of their own, with config.rollout.devices = 0"
        )
    if unknown := [name for name in programs if name not in PROGRAMS]:
        raise ValueError(
            f"there is no program {unknown[0]!r} to plan; choose from {', '.join(PROGRAMS)}"
        )
    compiled = [PROGRAMS[name](experiment, topology.chip) for name in programs]
    made = [program for program in compiled if program is not None]
    config, window = experiment.policy, experiment.window
    count = num_params(config)
    tokens = batch_rows(experiment) * (window.prompt + window.completion)
    return Plan(
        topology=str(topology),
        num_chips=topology.num_chips,
        mesh=dict(experiment.mesh.shape),
        num_params=count,
        tokens=tokens,
        ideal_flops=6.0 * active_params(config) * tokens / topology.num_devices,
        programs=made,
        advice=[line for program in made for line in advise(experiment, program)],
    )


def active_params(config: TransformerConfig) -> int:
    """The parameters that multiply every token: not the table that it is looked up in.

    Of experts, those that a token goes to.
    """
    count = num_params(config)
    if not config.tie_embeddings:
        count -= config.vocab_size * config.embed_dim
    idle = config.num_experts - config.experts_per_token
    count -= 3 * config.num_layers * idle * config.embed_dim * config.mlp_dim
    return count


def advise(experiment: Experiment, program: Program) -> list[str]:
    """What to change so that a program fits, most useful first; or sends less, where it does."""
    if program.fits:
        return _send_less(experiment, program)
    training, policy = experiment.training, experiment.policy
    shape = experiment.mesh.shape
    kept = sum(
        program.memory.get(name, 0) for name in ("parameters", "frozen parameters", "optimizer")
    )
    advice = []
    if program.name == "sampler":
        rows = decoded_rows(experiment) // mesh.row_shards(drawing_mesh(experiment))
        option = "slots" if experiment.rollout.slots else "max_rows"
        advice.append(
            f"rollout.{option} = {max(1, rows // 2)}: {rows} rows at a time on each row shard keep "
            f"{shown(program.memory.get('key-value cache', 0))} of keys and values"
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
        if training.chunk:
            advice.append(f"training.chunk = 0 instead of {training.chunk}: 64 MiB of logits")
        if kept > program.limit_bytes // 4:
            advice.append("optimizer.moment_dtype = 'bfloat16', if it is not yet")
    if kept > program.limit_bytes // 4 and shape["data"] > 1:
        advice.append(
            f"a larger mesh.fsdp in place of mesh.data = {shape['data']}: parameters and optimizer "
            f"fill {shown(kept)} a device"
        )
    if program.name != "sampler" and shape["sequence"] == 1:
        advice.append("mesh.sequence = 2 or 4 if answers are long: the columns of rows are split")
    if shape["tensor"] == 1:
        advice.append("mesh.tensor = 2 or 4: heads, MLP and logits are split too")
    advice.append("more chips, or a generation with more memory")
    return [f"{program.name}: {line}" for line in advice]


def _send_less(experiment: Experiment, program: Program) -> list[str]:
    """That there is room for fewer micro-batches, where there is."""
    parts, steps = experiment.training.micro_batches, ("train step", "packed step")
    half_empty = 2 * program.peak_bytes < program.limit_bytes
    if program.name not in steps or parts == 1 or not (half_empty and program.wire_bytes):
        return []
    return [
        f"{program.name}: training.micro_batches = {parts // 2} instead of {parts} sends less: "
        "each gathers the parameters and adds its gradients, and more than half of the memory is "
        "free"
    ]


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
    result["utilisation"] = plan.utilisation
    for entry, program in zip(result["programs"], plan.programs, strict=True):
        entry["collectives_by_kind"] = program.by_kind()
        entry["wire_bytes"] = program.wire_bytes
        entry["collectives"] = [
            dataclasses.asdict(c) | {"wire_bytes": c.wire_bytes} for c in program.collectives[:12]
        ]
    return result


def to_text(plan: Plan) -> str:
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
            f"{program.hbm_seconds:.3g} s"
        )
        if program.name == "train step":
            lines.append(
                f"  6 N D is {plan.ideal_flops:.3e}: the step does "
                f"{program.flops / plan.ideal_flops:.2f} times that"
            )
        if program.name == "train step" and plan.utilisation is not None:
            low, high = plan.utilisation
            lines.append(
                f"  model-FLOP utilisation expected: {low:.0%} with nothing overlapped to "
                f"{high:.0%} with everything (not calibrated)"
            )
        if program.aliased[1]:
            lines.append(f"  donated state reused: {program.aliased[0]} of {program.aliased[1]}")
        lines.append(
            f"  collectives: {shown(program.wire_bytes)} sent a device, "
            f"{program.wire_seconds:.3g} s; {shown(program.overlapped_bytes)} of it beside products"
        )
        if program.slow_bytes:
            lines.append(f"  {shown(program.slow_bytes)} sent a device from slice to slice")
        for kind, entry in program.by_kind().items():
            lines.append(
                f"    {kind:<18} {entry['times']:>7} times, {shown(entry['wire_bytes']):>10}"
            )
        lines.append("  largest temporaries:")
        lines += [
            f"    {shown(size):>10}  {shape}  {source[-70:]}"
            for size, shape, source in program.temporaries[:5]
        ]
    lines += ["", "It fits." if plan.fits else "It does not fit."]
    lines += ["What to change:"] if plan.advice else []
    lines += [f"  - {line}" for line in plan.advice]
    return "\n".join(lines)
