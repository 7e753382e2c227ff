"""The transformers side of `rollout.py`, in an environment that has torch and transformers.

    python rollout_torch.py '{"vocab_size": 2048, ...}' prompts.npz

Answers one line of JSON for each line of stdin: `equal`, `ragged` or `about`. A row ends after as
many tokens as its prompt's first one says, less 2, by a stopping criterion.
"""

import json
import sys
from typing import Any

import numpy as np
import torch
from sides import serve
from transformers import Qwen3Config, Qwen3ForCausalLM, StoppingCriteria, StoppingCriteriaList

PAD, EOS = 0, 1


class Schedule(StoppingCriteria):
    """Ends each row by itself; `generate` stops when all have ended."""

    def __init__(self, width: int):
        self.width = width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows have ended."""
        return input_ids.shape[1] - self.width >= input_ids[:, 0] - 2


def main() -> None:
    """Builds, then answers until stdin ends."""
    options = json.loads(sys.argv[1])
    data = np.load(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(options["threads"])
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=options["vocab_size"],
            hidden_size=options["embed_dim"],
            num_hidden_layers=options["num_layers"],
            num_attention_heads=options["num_heads"],
            num_key_value_heads=options["num_kv_heads"],
            head_dim=options["head_dim"],
            intermediate_size=options["mlp_dim"],
            rms_norm_eps=options["norm_epsilon"],
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=PAD,
        )
    ).eval()
    width, length = options["prompt"], options["completion"]
    criteria = StoppingCriteriaList([Schedule(width)])

    @torch.inference_mode()
    def sample(case: str, turn: int) -> int:
        del turn  # Torch has one stream of its own.
        prompts = torch.from_numpy(data[f"{case}_prompts"]).long()
        for part in prompts.split(options["rows"]):
            drawn = model.generate(
                part,
                attention_mask=torch.ones_like(part),
                max_new_tokens=length,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                suppress_tokens=[EOS],
                stopping_criteria=criteria,
                output_scores=True,
                return_dict_in_generate=True,
            )
            model.compute_transition_scores(drawn.sequences, drawn.scores, normalize_logits=True)
        return int(data[f"{case}_lengths"].sum())

    count = sum(x.numel() for x in model.parameters())
    threads = torch.get_num_threads()
    serve(sample, ("torch", "transformers"), params=count, threads=threads)


if __name__ == "__main__":
    main()
