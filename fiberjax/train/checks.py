"""What options of several sections must agree on, before rollouts and updates compile."""

from pathlib import Path

from jax.sharding import Mesh

from fiberjax import options
from fiberjax.bounds import named
from fiberjax.mismatch import CORRECTIONS
from fiberjax.parallel import mesh
from fiberjax.policy import TransformerConfig


def check_rows(
    device_mesh: Mesh,
    rollout: options.Rollout,
    training: options.Training,
    warm_start: options.WarmStart,
    evaluation: options.Evaluation,
) -> None:
    """Refuses batches that do not divide: over devices, minibatches and micro-batches."""
    shards = mesh.row_shards(device_mesh)
    shown = f"{shards} row shards (mesh data × fsdp)"
    if rollout.prompts % (shards * training.minibatches):
        raise ValueError(
            f"config.rollout.prompts = {rollout.prompts} does not divide into "
            f"{training.minibatches} minibatches over {shown}"
        )
    rows = rollout.prompts * rollout.samples // (training.minibatches * shards)
    if rows % training.micro_batches:
        raise ValueError(
            f"config.training.micro_batches = {training.micro_batches} does not divide the "
            f"{rows} rows of a minibatch on each row shard"
        )
    fed = {"config.evaluation.batch": evaluation.batch}
    if warm_start.steps > 0:
        fed["config.warm_start.batch_size"] = warm_start.batch_size
    for path, size in fed.items():
        if size % shards:
            raise ValueError(f"{path} = {size} does not divide over {shown}")


def check_columns(
    device_mesh: Mesh,
    window: options.Window,
    rollout: options.Rollout,
    curriculum: options.Curriculum,
    evaluation: options.Evaluation,
) -> None:
    """Refuses columns, and rows to sample, that do not divide over the mesh axis `sequence`.

    Raises:
      ValueError: names the options; or a row's columns would lie on several processes.
    """
    parts = device_mesh.shape["sequence"]
    if parts == 1:
        return
    columns = window.prompt + window.completion
    if columns % (2 * parts):
        raise ValueError(
            f"config.window.prompt + completion = {columns} tokens do not divide into two pieces "
            f"for each of config.mesh.sequence = {parts}"
        )
    with named("config.mesh"):
        shards = mesh.row_shards(mesh.folded(device_mesh))
    drawn = {
        "config.rollout.prompts × samples": rollout.prompts * rollout.samples,
        "config.rollout.prompts × config.curriculum.profile_samples": (
            rollout.prompts * curriculum.profile_samples
        ),
        "config.evaluation.batch × samples": evaluation.batch * evaluation.samples,
    }
    for path, rows in drawn.items():
        if rows % shards:
            raise ValueError(
                f"{path} = {rows} rows do not divide over the {shards} row shards that sample "
                f"(mesh data × fsdp × sequence)"
            )


def check_lag(sampling_mesh: Mesh, rollout: options.Rollout, training: options.Training) -> None:
    """Refuses rollouts that are taken for another policy's, and rows that do not divide."""
    if rollout.lag and training.mismatch == "none" and training.edge != "direct":
        raise ValueError(
            f"config.rollout.lag = {rollout.lag} trains on what an earlier policy sampled, and "
            "config.training.mismatch = 'none' would not correct it: expected one of "
            f"{', '.join(CORRECTIONS)}; or config.training.edge = 'direct'; or "
            "config.training.mismatch = 'uncorrected', to train on it as it is"
        )
    if training.old_log_probs == "sampler" and (rollout.lag or rollout.engine != "own"):
        raise ValueError(
            "config.training.old_log_probs = 'sampler' takes what sampled for the policy that is "
            f"about to learn, which config.rollout.lag = {rollout.lag} and config.rollout.engine = "
            f"{rollout.engine!r} do not: expected 'trainer', or lag = 0 and engine = 'own'"
        )
    shards = mesh.row_shards(sampling_mesh)
    if rollout.prompts * rollout.samples % shards:
        raise ValueError(
            f"config.rollout.prompts × samples = {rollout.prompts * rollout.samples} rows do not "
            f"divide over the {shards} row shards of config.rollout.devices = {rollout.devices}"
        )


def check_served(rollout: options.Rollout, server: options.Server, published: str) -> None:
    """Refuses a server whose weights are written over those that the run starts from.

    Args:
      rollout: says who draws.
      server: has the folder that is written before every iteration.
      published: `config.model.folder`, "" for none.

    Raises:
      ValueError: they are one folder.
    """
    if rollout.engine == "own" or not (published and server.folder):
        return
    if Path(server.folder).resolve() == Path(published).resolve():
        raise ValueError(
            f"config.server.folder = {server.folder!r} is config.model.folder, whose weights "
            "would be lost when the first policy is written there: expected a copy of it"
        )


def check_top_k(
    rollout: options.Rollout, evaluation: options.Evaluation, policy: TransformerConfig
) -> None:
    """Refuses more likeliest tokens than there are."""
    given = {"rollout.top_k": rollout.top_k, "evaluation.top_k": evaluation.top_k}
    for name, top_k in given.items():
        if top_k > policy.vocab_size:
            raise ValueError(
                f"config.{name} = {top_k}: expected at most the {policy.vocab_size} tokens of the "
                "vocabulary, or 0 for all"
            )


def check_cache(
    rollout: options.Rollout, training: options.Training, policy: TransformerConfig
) -> None:
    """Refuses a cache that is rounded where nothing corrects what that does.

    Raises:
      ValueError: names the options.
    """
    exact = rollout.cache_dtype in ("", policy.compute_dtype)
    if not exact and training.mismatch == "none" and training.edge != "direct":
        raise ValueError(
            f"config.rollout.cache_dtype = {rollout.cache_dtype!r} rounds what the sampler reads, "
            f"in {policy.compute_dtype} otherwise, so that its log-probabilities are not the "
            "trainer's, and config.training.mismatch = 'none' would not correct it: expected one "
            f"of {', '.join(CORRECTIONS)}, or config.training.edge = 'direct'"
        )
