"""The one compiled step, and what feeds it.

rollout        completions of prompts, with their rewards
batch          an optimizer batch, as the step reads it
packing        ragged answers without padding
minibatches    from rollouts to batches of whole prompt groups
forward        the policy over a batch, forward and back
update         log-ratios, gates, objective, gradient, optimizer: the step
"""
