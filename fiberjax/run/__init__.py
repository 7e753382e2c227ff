"""What happens over iterations, and what is left of it.

warm_start     the policy a run starts from
trainer        one iteration
loop           the run
evaluation     held-out prompts, before and after
statistics     what an evaluation can claim
identity       whose a run folder is: config, version and plugins; `migrations` of older ones
notebook       a run by one call, in this process
checkpoints, metrics, writers, progress, interrupts, plots
"""
