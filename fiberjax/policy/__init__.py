"""The policy: a decoder, the log-probabilities of its tokens, and a sampler."""

from fiberjax.policy.config import TransformerConfig
from fiberjax.policy.log_probs import TokenOutputs, chunked_token_outputs, token_outputs
from fiberjax.policy.placement import Placement
from fiberjax.policy.sampler import Samples, cast_kernels, sample
from fiberjax.policy.transformer import (
    Cache,
    Params,
    Transformer,
    bind,
    init,
    init_cache,
    num_params,
)

__all__ = [
    "Cache",
    "Params",
    "Placement",
    "Samples",
    "TokenOutputs",
    "Transformer",
    "TransformerConfig",
    "bind",
    "cast_kernels",
    "chunked_token_outputs",
    "init",
    "init_cache",
    "num_params",
    "sample",
    "token_outputs",
]
