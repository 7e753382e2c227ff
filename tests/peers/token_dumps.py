"""Token dumps of TRL, verl and prime-rl, written by their own code: `tests/data/dumps`.

    python -m pip install torch==2.13.0 trl==1.16.0 pillow pyarrow
    python -m pip install --no-deps verl==0.9.1
    python -m pip install omegaconf hydra-core tensordict==0.10.0 codetiming dill ray torchdata
    python -m pip install transferqueue==0.1.11 peft uvicorn fastapi cachetools
    python -m pip install beartype jaxtyping loguru msgspec prime-pydantic-config pyzmq wandb
    PYTHONPATH=prime-rl/src:prime-rl/packages/prime-rl-configs/src \
      python tests/peers/token_dumps.py trl verl prime-rl

Runs in an environment of its own, without fiberjax or JAX; prime-rl is on no index, so its sources
are needed. TRL trains a policy of random weights for two updates of one generation; the file is of
the second. verl makes a batch of its agent loop's outputs, and its advantages, as its trainer does;
the log-probabilities are made up. prime-rl packs samples and exports what its trainer would, the
log-probabilities made up too. The functions that write are those of docs/kept_rollouts.md.
"""

import functools
import json
import pathlib
import re
import sys
import tempfile
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

ROOT = pathlib.Path(__file__).parents[2]
DATA = ROOT / "tests/data/dumps"
PROMPTS, SAMPLES = [[5, 6, 7], [8, 9]], 3
"""Two prompts of three samples each."""


@functools.cache
def of_the_guide() -> dict[str, Any]:
    """What docs/kept_rollouts.md defines to write dumps."""
    text = (ROOT / "docs/kept_rollouts.md").read_text()
    scope: dict[str, Any] = {}
    exec("import pyarrow as pa\nimport pyarrow.parquet as pq", scope)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if "def dump_" in block:
            exec(block, scope)
    return scope


def trl(folder: pathlib.Path) -> dict[str, Any]:
    """GRPO on sums, by a random policy of one layer; what it logged of clipping."""
    from datasets import Dataset
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    signs = ["<pad>", "<end>", *"0123456789+= "]
    words = Tokenizer(models.WordLevel({sign: i for i, sign in enumerate(signs)}, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>"
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(signs), **shape, **heads, **ids)).save_pretrained(
        folder / "model"
    )
    tokenizer.save_pretrained(folder / "model")

    def digits(completions: list[str], **_: Any) -> list[float]:
        return [sum(sign.isdigit() for sign in text) / 8 for text in completions]

    class Dumping(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, *given: Any, **more: Any) -> Any:
            found = super()._get_per_token_logps_and_entropies(*given, **more)
            self.log_probs = found[0].detach()
            return found

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            loss = super()._compute_loss(model, inputs)
            seen = inputs | {"per_token_logps": self.log_probs}
            of_the_guide()["dump_trl"](seen, DATA / "trl.parquet")
            return loss

    trainer = Dumping(
        model=str(folder / "model"),
        reward_funcs=digits,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(
            [{"prompt": f"{a}+{b}="} for a in (1, 12) for b in (3, 45)]
        ),
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=8,
            num_iterations=2,
            max_steps=2,
            logging_steps=1,
            learning_rate=2e-2,
            lr_scheduler_type="constant",
            beta=0.1,
            log_completions=True,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
        ),
    )
    trainer.train()
    logged = trainer.state.log_history[1]
    written = folder / "trl/completions/completions_00002.parquet"
    (DATA / "trl_completions.parquet").write_bytes(written.read_bytes())
    return {"trl": version("trl"), "clipped": logged["clip_ratio/region_mean"]}


def verl(_: pathlib.Path) -> dict[str, Any]:
    """A batch of the trainer's V1, rows as long as they are, and of the one before it, padded."""
    from tensordict import TensorDict
    from verl import DataProto
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
    from verl.trainer.ppo.ray_trainer import compute_advantage
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict
    from verl.workers.utils.padding import response_to_nested

    rng = np.random.default_rng(0)
    fields = []
    for row in range(len(PROMPTS) * SAMPLES):
        prompt, length = PROMPTS[row // SAMPLES], int(rng.integers(2, 7))
        mask = [1] * length
        if row == 4:  # A tool replied.
            mask[1] = 0
        output = AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=rng.integers(1, 50, length).tolist(),
            response_mask=mask,
            response_logprobs=(-rng.exponential(1, length)).tolist(),
            reward_score=float(row % 2),
            num_turns=2,
            metrics=AgentLoopMetrics(),
        )
        fields.append(
            output.as_dict()
            | {"uid": f"prompt-{row // SAMPLES}", "data_source": ("math", "code")[row // SAMPLES]}
        )
    data = list_of_dict_to_tensordict(fields)
    mask = data["response_mask"]
    old = [of + 0.01 * torch.randn(len(of)) for of in data["rollout_log_probs"].unbind()]
    data["old_log_probs"] = torch.nested.as_nested_tensor(old, layout=torch.jagged)

    # As the trainer's _compute_advantage has it.
    padded = DataProto(
        batch=data.select("response_mask", "rm_scores", "old_log_probs").to_padded_tensor()
    )
    padded.batch["token_level_scores"] = padded.batch["rm_scores"]
    padded.batch["token_level_rewards"] = padded.batch["rm_scores"]
    padded.non_tensor_batch["uid"] = np.array(list(data["uid"]), object)
    padded = compute_advantage(padded, adv_estimator="grpo")
    advantages = response_to_nested(padded.batch["advantages"], mask)
    data.update(TensorDict({"advantages": advantages}, batch_size=len(data)))
    of_the_guide()["dump_verl"](data, DATA / "verl.parquet")

    # The trainer before V1: prompts padded at the left, answers at the right.
    prompts = [of.tolist() for of in data["prompts"].unbind()]
    wide = max(map(len, prompts))
    left = torch.tensor([[0] * (wide - len(of)) + of for of in prompts])
    seen = torch.tensor([[0] * (wide - len(of)) + [1] * len(of) for of in prompts])
    answers = torch.nested.to_padded_tensor(data["responses"], 0)
    real = torch.arange(answers.shape[1]) < data["responses"].offsets().diff()[:, None]
    whole = {
        "prompts": left,
        "responses": answers,
        "attention_mask": torch.cat([seen, real.long()], 1),
        **{name: padded.batch[name] for name in ("response_mask", "old_log_probs", "advantages")},
        "token_level_scores": padded.batch["token_level_scores"],
    }
    more = {name: np.array(list(data[name]), object) for name in ("uid", "data_source")}
    batch = DataProto.from_dict(whole, non_tensors=more)
    of_the_guide()["dump_verl"](
        {**batch.batch, **batch.non_tensor_batch}, DATA / "verl_padded.parquet"
    )
    return {"verl": version("verl")}


def prime_rl(folder: pathlib.Path) -> dict[str, Any]:
    """What the trainer exports of packed sequences, and the micro-batches themselves."""
    from prime_rl.configs.trainer import DefaultLossConfig
    from prime_rl.trainer.batch import build_bin_cost, prepare_batch
    from prime_rl.trainer.rl.token_export import TokenExporter
    from prime_rl.transports.rollouts.types import TrainingSample

    rng = np.random.default_rng(1)
    samples = []
    for row in range(len(PROMPTS) * SAMPLES):
        prompt, length = PROMPTS[row // SAMPLES], int(rng.integers(2, 6))
        behind, whole = [True] * length, len(prompt) + length
        samples.append(
            TrainingSample(
                token_ids=prompt + rng.integers(1, 50, length).tolist(),
                mask=[False] * len(prompt) + behind,
                logprobs=[0.0] * len(prompt) + (-rng.exponential(0.7, length)).tolist(),
                temperatures=[1.0] * whole,
                env_name=("math", "code")[row // SAMPLES],
                ref_logprobs=[-0.5] * whole,
                advantages=[0.0] * len(prompt) + [float(rng.normal())] * length,
            )
        )
    (batches,) = prepare_batch(samples, 16, 1, build_bin_cost(None), pad_to_multiple_of=8)
    of_the_guide()["dump_prime_rl"](batches, DATA / "prime_rl_packed.parquet")
    exporter = TokenExporter(folder, 0)
    for number, of in enumerate(batches):
        tensors = {
            name: torch.tensor(getattr(of, name))[None]
            for name in (
                "input_ids",
                "position_ids",
                "advantages",
                "inference_logprobs",
                "loss_mask",
            )
        }
        log_probs = tensors["inference_logprobs"] + torch.tensor(
            rng.normal(0, 0.4, (1, len(of.input_ids))), dtype=torch.float32
        )
        log_probs = log_probs.clamp(max=-1e-3)
        exporter.export(
            0,
            number,
            tensors | {"env_names": of.env_names},
            {"logprobs": log_probs, "entropy": torch.ones_like(log_probs)},
            of.sequence_lengths,
            DefaultLossConfig(),
        )
    exporter.close()
    (DATA / "prime_rl.jsonl").write_bytes(
        (folder / "token_exports/step_0/rank_0.jsonl").read_bytes()
    )
    return {"prime-rl": "0.8.0, commit 559b447"}


def main(names: list[str]) -> None:
    """Writes the dumps of the trainers that are named, and notes what wrote them."""
    DATA.mkdir(exist_ok=True)
    noted = DATA / "made.json"
    made = json.loads(noted.read_text()) if noted.exists() else {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            made[name] = {"trl": trl, "verl": verl, "prime-rl": prime_rl}[name](
                pathlib.Path(folder)
            )
    noted.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
