"""What happens over iterations, and what is left of it.

warm_start     the policy a run starts from
trainer        one iteration
loop           the run
evaluation     held-out prompts, before and after
statistics     what an evaluation can claim
notebook       a run by one call, in this process
checkpoints, metrics, progress, interrupts, plots
"""
