"""The policy: a decoder, the log-probabilities of its tokens, and a sampler."""

from fiberjax.policy.cache import Cache, init_cache
from fiberjax.policy.config import TransformerConfig
from fiberjax.policy.log_probs import TokenOutputs, chunked_token_outputs, token_outputs
from fiberjax.policy.placement import Placement
from fiberjax.policy.sampler import Samples, cast_kernels, sample
from fiberjax.policy.transformer import (
    Params,
    Transformer,
    bind,
    init,
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
