"""A tool that the policy may call: two turns, and what the second one is worth to the first.

    python experiments/train.py --config=configs/calculator.py --workdir=runs/calculator

Products of two numbers of two digits, which so small a policy does not learn to do in its head. The
warm start shows it both ways, half of them each: to answer at once, and to write
`<calc>47*38</calc>`, read the calculator's reply and answer with that. Rewards alone then decide.
Trust regions are of turns, trajectories, prompt groups and domains. See docs/turns.md.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(gate: str = "silent_sequence") -> ConfigDict:
    """The experiment; a hierarchy is given the turns as its finest level."""
    config = quickstart.get_config(gate)
    config.iterations = 15
    config.tasks.domains = ConfigDict({"calculation": {"digits": 2, "calls": 0.5}})
    config.tasks.num_test = 400
    config.turns.environment = "calculator"
    config.turns.limit = 2
    config.turns.reply = 8
    # Two turns of 20 tokens: `<calc>47*38</calc>` is 18.
    config.window = ConfigDict({"prompt": 16, "completion": 48})
    config.warm_start.steps = 150
    config.warm_start.flawed = 0.0
    config.levels = (("turn", "turn"), *config.levels)
    if "order" in config.gate:
        finest = config.gate.order[0]
        config.gate.order = ("turn", *config.gate.order)
        config.gate.levels.turn = ConfigDict(dict(config.gate.levels[finest]))
    config.rollout.prompts = 64
    config.evaluation.prompts = 400
    config.evaluation.batch = 200
    config.evaluation.every = 3
    config.keep.show_every = 5
    return config
