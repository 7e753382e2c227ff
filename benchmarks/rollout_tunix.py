"""The tunix side of `rollout.py`, in an environment that has google-tunix and not fiberjax.

    python rollout_tunix.py '{"vocab_size": 2048, ...}' prompts.npz

Answers one line of JSON for each line of stdin: `equal`, `ragged` or `about`. A row ends after as
many tokens as its prompt's first one says, less 2: the sampler has no place for a schedule.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np
from flax import nnx
from sides import Rows, serve
from tunix.generate.sampler import Sampler
from tunix_policy import make_cache, make_model

PAD, EOS = 0, 1


class Scheduled(Sampler):
    """Ends rows by the schedule; the loop stops when all have ended, as it does by itself."""

    def _sample(self, **given: Any) -> Any:
        state = super()._sample(**given)
        drawn = state.decoding_step - state.num_input_tokens + 1
        ended = drawn >= state.token_buffer[:, 0] - 2
        return dataclasses.replace(state, done=state.done | ended)


def main() -> None:
    """Builds, then answers until stdin ends."""
    options = json.loads(sys.argv[1])
    data = np.load(sys.argv[2])
    model, cache = make_model(options), make_cache(options)
    width, length = options["prompt"], options["completion"]
    samplers = {
        case: Scheduled(model, Rows(data[f"{case}_prompts"], pad=PAD, eos=EOS), cache)
        for case in ("equal", "ragged")
    }

    def sample(case: str, seed: int) -> int:
        rows = len(data[f"{case}_prompts"])
        for start in range(0, rows, options["rows"]):
            samplers[case](
                [str(row) for row in range(start, start + options["rows"])],
                length,
                max_prompt_length=width,
                forbidden_tokens=[EOS],
                temperature=1.0,
                top_p=1.0,
                return_logprobs=True,
                seed=seed,
            )
        return int(data[f"{case}_lengths"].sum())

    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    serve(sample, ("google-tunix", "jax", "jaxlib", "flax"), params=count)


if __name__ == "__main__":
    main()
