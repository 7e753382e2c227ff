"""Compares our logits of a text with those that transformers gave, and makes one update.

    python experiments/gemma3/check.py --folder=gemma-3-270m

The folder is `make_folder.py`'s. A check of the numbers and of the way through; it trains nothing.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import quickstart
from fiberjax import experiment, model_folder
from fiberjax.parallel import mesh, shardings
from fiberjax.policy import bind, init, transformer, weights
from fiberjax.run.trainer import Trainer
from fiberjax.tasks import VERIFIERS


def main() -> None:
    """Prints the differences, and the metrics of the update."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as scratch:
        config = model_folder.with_folder(make_config(folder, scratch))
        rewards = VERIFIERS | {"characters": different_characters}
        built = experiment.from_config(config, reward_table=rewards)
        params = load(built, folder)
        compare(built, params, folder)
        update(built, params)


def different_characters(prompt: str, answer: str, completion: str) -> float:
    """A reward that differs between answers, so that there is a gradient."""
    del prompt, answer
    return float(len(set(completion)))


def make_config(folder: Path, scratch: str) -> Any:
    """One iteration of one update, on eight answers to two short sums."""
    rows = Path(scratch) / "rows.jsonl"
    rows.write_text('{"prompt": "2 + 2 =", "answer": "4"}\n{"prompt": "3 + 5 =", "answer": "8"}\n')
    config = quickstart.get_config()
    config.iterations = 1
    config.model.folder, config.model.chat = str(folder), "off"
    config.warm_start.steps = 0
    config.tasks.file = config.tasks.test_file = str(rows)
    config.tasks.verifier = "characters"
    config.window.prompt, config.window.completion = 8, 4
    config.rollout.prompts, config.rollout.samples = 2, 4
    config.training.minibatches = config.training.micro_batches = 1
    config.training.packing, config.training.chunk = False, 4
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 1e-6
    config.optimizer.warmup_steps = 0
    config.mesh.data = 1
    return config


def load(built: experiment.Experiment, folder: Path) -> Any:
    """The folder's parameters."""
    abstract = jax.eval_shape(lambda: init(built.policy, jax.random.key(0)))
    return weights.load(folder, built.policy, shardings.param_shardings(built.mesh, abstract))


def compare(built: experiment.Experiment, params: Any, folder: Path) -> None:
    """Logits and log-probabilities of the text, ours against those in `logits.npz`."""
    found = np.load(folder / "logits.npz", allow_pickle=False)
    tokens, expected = found["tokens"][None].astype(np.int32), found["logits"]

    @jax.jit
    def logits(params: Any) -> jax.Array:
        model = bind(built.policy, params)
        positions = jnp.arange(tokens.shape[1])[None]
        hidden = model.hidden(jnp.asarray(tokens), positions, jnp.ones_like(tokens))
        return transformer.logits(hidden, model.unembedding())[0]

    ours = np.asarray(logits(params))
    gap = np.abs(np.asarray(jax.nn.log_softmax(ours)) - np.asarray(jax.nn.log_softmax(expected)))
    same = (ours.argmax(-1) == expected.argmax(-1)).mean()
    print(f"{len(ours)} tokens, vocabulary {ours.shape[-1]}")
    print(
        f"logits: {np.abs(ours - expected).max():.2g} apart at most, of up to "
        f"{np.abs(expected).max():.3g}"
    )
    print(f"log-probabilities: {gap.max():.2g} nats apart at most over the whole vocabulary")
    print(f"the likeliest token is the same at {same:.0%} of the positions")


def update(built: experiment.Experiment, params: Any) -> None:
    """One iteration; its state is thrown away."""
    make = jax.jit(built.fresh_state, donate_argnums=0)
    state = mesh.place(built.mesh, make(params), mesh.REPLICATED)
    state, scalars = Trainer(built, None).iterate(state, built.prompt_stream(), 0)
    for name in ("mismatch/log_prob_abs_max", "actor/entropy", "actor/grad_norm"):
        print(f"{name}: {scalars[name]:.3g}")
    assert all(np.isfinite(list(scalars.values()))), scalars


if __name__ == "__main__":
    main()
