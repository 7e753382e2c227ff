"""The tunix side of `train_step.py`, in an environment that has google-tunix and not fiberjax.

    python tunix_side.py '{"vocab_size": 2048, ...}' batch.npz

Builds tunix's own trainer, GRPO loss and sampler over its Qwen3 with random weights, then answers
one line of JSON for each line of stdin: `step`, `ragged`, `sample` or `about`.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sides import Rows, serve
from tunix.generate.sampler import Sampler
from tunix.models.qwen3.model import Qwen3
from tunix.rl import algo_core, common
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.rl.trainer import Trainer
from tunix.sft.peft_trainer import TrainingConfig
from tunix_policy import make_cache, make_model

PAD, EOS = 0, 1


def make_step(model: Qwen3, options: dict[str, Any]) -> Callable[[Any], Any]:
    """The step that `Trainer.train` calls for every batch, with the loss of `GRPOLearner`."""
    trainer = Trainer(
        model,
        optax.adamw(options["learning_rate"], weight_decay=options["weight_decay"]),
        TrainingConfig(eval_every_n_steps=10**9),
        custom_checkpoint_metadata_fn=dict,
    )
    config = GRPOConfig(num_generations=options["samples"], num_iterations=2, beta=0.0)
    config.temperature = 1.0  # As the learner does.

    def loss(model: Any, train_example: Any, algo_config: Any) -> Any:
        return algo_core.grpo_loss_fn(
            model, train_example, algo_config=config, pad_id=PAD, eos_id=EOS
        )

    trainer.with_loss_fn(loss, has_aux=True)
    trainer.with_gen_model_input_fn(lambda x: {"train_example": x, "algo_config": config})
    step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    return step


def examples(data: Any) -> dict[str, common.TrainExample]:
    """The full and the ragged batch, with old log-probabilities and no reference policy."""
    prompts = jnp.asarray(data["prompts"])
    made = {}
    for name, mask in (("step", np.ones_like(data["ragged"])), ("ragged", data["ragged"])):
        made[name] = common.TrainExample(
            prompt_ids=prompts,
            prompt_mask=prompts != PAD,
            completion_ids=jnp.asarray(np.where(mask, data["completions"], PAD)),
            completion_mask=jnp.asarray(mask),
            advantages=jnp.asarray(data["advantage"]),
            ref_per_token_logps=None,
            old_per_token_logps=jnp.asarray(data["old_log_prob"]),
        )
    return made


def main() -> None:
    """Builds, then answers until stdin ends."""
    options = json.loads(sys.argv[1])
    data = np.load(sys.argv[2])
    model, cache = make_model(options), make_cache(options)
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    length = options["completion"]
    # The sampler holds the weights of the beginning: a step replaces the arrays, never writes them.
    sampler = Sampler(model, Rows(data["prompts"], pad=PAD, eos=EOS), cache)
    step = make_step(model, options)
    batches = examples(data)
    lengths = {name: int(batch.completion_mask.sum()) for name, batch in batches.items()}
    texts = [str(row) for row in range(len(data["prompts"]))]

    def sample(seed: int) -> int:
        sampler(
            texts,
            length,
            max_prompt_length=options["prompt"],
            temperature=1.0,
            top_p=1.0,
            return_logprobs=True,
            seed=seed,
        )
        return len(texts) * length

    def train(name: str) -> int:
        jax.block_until_ready((step(batches[name]), nnx.state(model)))
        return lengths[name]

    def measure(name: str, seed: int) -> int:
        return sample(seed) if name == "sample" else train(name)

    serve(measure, ("google-tunix", "jax", "jaxlib", "flax", "optax"), params=count)


if __name__ == "__main__":
    main()
