"""The runs of every figure, by stage: one thing changed around `settings.BASE`.

Stage 1 is all that is worth a look, on two seeds; stage 2 is what is reported, on five.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.study import halving
from experiments.study.halving import Find
from experiments.study.settings import SEEDS, TUNING_SEEDS, Replay, Setting
from fiberjax.presets import preset

Figure = Callable[[int, Find], tuple[Setting, ...]]
"""From a stage, and what gives the run of a setting that was made, to a figure's settings."""


def _shared(method: str, gate: str, **overrides: Any) -> Setting:
    """A gate with the step as long as the share that it leaves open."""
    return Setting(method, gate, {"training.step_share": "importance"}).at(0, **overrides)


def _over(settings: Sequence[Setting], stage: int) -> tuple[Setting, ...]:
    """Every setting at every seed of a stage, all settings of a seed before the next one."""
    seeds = SEEDS[:2] if stage == 1 else SEEDS
    return tuple(setting.at(seed) for seed in seeds for setting in settings)


TABLE = tuple(
    Setting(name, name)
    for name in (
        "gspo",
        "grpo",
        "fiberpo_domain_pessimistic",
        "dppo_tv",
        "importance",
        "fiberpo_domain",
    )
)
"""Shipped budgets, side by side."""


def _hierarchy(name: str, gate: str, budget: float) -> Setting:
    """A pessimistic hierarchy that holds, over the exact bundle, one budget at every level."""
    budgets = {f"gate.levels.{level}.budget": budget for level in preset(gate)["order"]}
    options = {"gate.variant": "exact", "gate.base_gate": "hold", "gate.epsilon": 0.2}
    return Setting(f"{name} {budget:g}", gate, options | budgets)


TRIALS = tuple(
    _hierarchy(name, gate, budget)
    for name, gate in (
        ("trajectory alone", "fiberpo_pessimistic"),
        ("three levels", "fiberpo_domain_pessimistic"),
    )
    for budget in (1e-3, 3e-4)
)
"""Tight budgets in a form that does not push when closed."""

SHARED = (
    _shared("silent: three levels", "silent_domain"),
    _shared("GSPO", "gspo"),
    _shared("silent: trajectory", "silent_trajectory"),
    _shared("silent: three levels, residuals", "silent_residual"),
    _shared("GRPO", "grpo"),
    _shared("FiberPO-Domain, pessimistic", "fiberpo_domain_pessimistic"),
)
"""The step share, over gates that fall silent and gates that do not."""

UNSHARED = (
    Setting("silent: three levels, whole steps", "silent_domain"),
    Setting("silent: trajectory, whole steps", "silent_trajectory"),
)
"""What the step share adds to the silent hierarchies."""

HARD = tuple(
    setting.at(0, optimizer__learning_rate=3e-3)
    for setting in (SHARED[0], SHARED[1], SHARED[2], TABLE[0], TABLE[1])
)
"""Three times the learning rate, at which every gate with whole steps collapses."""

CHOSEN = {
    "GRPO": 0.01,
    "GSPO": 0.01,
    "CPPO": 0.015,
    "DPPO": 0.01,
    "FiberPO-Domain": 1,
    "GSPO, share": 0.01,
    "silent sequence, share": 0.004,
}
"""The trial of `budgets` that each method below takes: the best mean of two seeds."""


def _tuned(method: str) -> Setting:
    """A method with the budgets that halving chose for it."""
    name = f"{method}: {CHOSEN[method]:g}"
    trial = next(trial for trial in halving.candidates()[method] if trial.method == name)
    return dataclasses.replace(trial, method=method)


def _whole_steps(setting: Setting) -> dict[str, Any]:
    """The overrides of a setting without its share."""
    return {k: v for k, v in setting.overrides.items() if k != "training.step_share"}


SIX = tuple(
    _tuned(name)
    for name in ("GRPO", "GSPO", "CPPO", "DPPO", "FiberPO-Domain", "silent sequence, share")
)
"""Those that every axis is run for, each with tuned budgets."""

MORE = (_tuned("GSPO, share"),)
"""Beside them: what the share does without the upper levels."""

FOUR = (SIX[0], SIX[1], SIX[5], MORE[0])
"""Where seven would be too many: GRPO, GSPO, ours, and GSPO with the share."""

ALONE = dataclasses.replace(
    SIX[5].at(0, **{f"gate__levels__{level}__budget": 10.0 for level in ("group", "domain")}),
    method="silent sequence: trajectory, share",
)
"""Ours without its upper levels, whose budgets nothing reaches."""

SHORTER = dataclasses.replace(
    ALONE.at(0, optimizer__learning_rate=2.4e-3), method=f"{ALONE.method}, rate × .8"
)
"""The same at .8 of the higher rate: its steps are about as short as those of all levels there."""

WHOLE = Setting("silent sequence, whole steps", SIX[5].gate, _whole_steps(SIX[5]))
"""Ours without the share."""

NO_GATE = Setting("no gate", "importance")

SHIPPED = (
    Setting("GRPO", "grpo"),
    Setting("GSPO", "gspo"),
    Setting("CPPO", "cppo"),
    Setting("DPPO", "dppo_tv"),
    Setting("FiberPO-Domain", "fiberpo_domain"),
    _shared("silent sequence, share", "silent_sequence"),
    _shared("GSPO, share", "gspo"),
    _shared("silent trajectory, share", "silent_trajectory"),
)

PEERS = (
    *SHIPPED,
    NO_GATE,
    Setting("DAPO", "dapo"),
    Setting("CISPO", "cispo"),
    Setting("SAPO", "sapo"),
    Setting("GMPO", "gmpo"),
    Setting("DPPO, KL", "dppo_kl"),
    Setting("PNPO", "pnpo"),
    Setting("MinPRO", "minpro"),
    Setting("FIPO", "fipo"),
    Setting("VESPO", "vespo", {"training.edge": "direct"}),
    Setting("TOPR", "topr"),
    Setting("LUSPO", "luspo", {"training.weighting": "constant"}),
    Setting("M2PO", "m2po"),
    Setting("TRM", "trm"),
    Setting("OPSM", "opsm"),
    Setting("TVPO", "tvpo"),
    Setting("FiberPO", "fiberpo"),
    Setting("FiberPO-Domain, pessimistic", "fiberpo_domain_pessimistic"),
)
"""All methods as they are shipped."""


def table(stage: int, find: Find) -> tuple[Setting, ...]:
    """Shipped budgets and tight ones."""
    return _over((*TABLE, *TRIALS), stage)


def share(stage: int, find: Find) -> tuple[Setting, ...]:
    """The step share and the silent hierarchy."""
    return _over((*SHARED, *UNSHARED), stage)


def hard(stage: int, find: Find) -> tuple[Setting, ...]:
    """The same at three times the learning rate."""
    return _over(HARD, stage)


def tuning(stage: int, find: Find) -> tuple[Setting, ...]:
    """What the budgets of `scales` were chosen from; both stages alike."""
    share = {"training.step_share": "importance"}

    def levels(name: str, gate: str, trajectory: float, above: float) -> Setting:
        pairs = {"trajectory": trajectory, "group": above, "domain": above}
        budgets = {f"gate.levels.{level}.budget": budget for level, budget in pairs.items()}
        return Setting(f"{name} {trajectory:g}, above {above:g}", gate, share | budgets)

    def clip(factor: float) -> Setting:
        bounds = {"gate.clip_low": 3e-4 * factor, "gate.clip_high": 4e-4 * factor}
        return Setting(f"GSPO, budgets × {factor:g}", "gspo", share | bounds)

    def noise(name: str, trajectory: float, above: float) -> Setting:
        found = levels(name, "silent_sequence", trajectory, above)
        return found.at(0, gate__budget_scale="noise")

    def held(kl: float) -> Setting:
        found = levels(f"silent sequence, KL held to {kl:g}, from", "silent_sequence", 4e-3, 4e-3)
        control = {"kind": "kl", "target": kl, "gain": 0.5, "end": 1.0, "largest": 100.0}
        return found.at(0, budget_control=control)

    more = (
        levels("silent sequence", "silent_sequence", 4e-3, 4e-3),
        levels("silent sequence", "silent_sequence", 1.2e-2, 1.2e-2),
        levels("silent sequence", "silent_sequence", 4e-3, 1.2e-3),
        noise("silent sequence, noise", 0.02, 0.012),
        noise("silent sequence, noise", 0.006, 0.004),
        held(0.003),
        held(0.01),
        clip(10),
        clip(30),
    )
    methods = (
        levels("silent", "silent_domain", 4e-4, 4e-4),
        levels("silent", "silent_domain", 1.2e-3, 1.2e-3),
        levels("silent sequence", "silent_sequence", 4e-4, 4e-4),
        levels("silent sequence", "silent_sequence", 1.2e-3, 1.2e-3),
        levels("silent sequence", "silent_sequence", 1.2e-3, 4e-4),
        clip(1),
        clip(3),
    )
    return tuple(
        method.on({"η": rate}, optimizer__learning_rate=rate).at(TUNING_SEEDS[0])
        for rate in (3e-3, 1e-3)
        for method in (*more, *methods)
    )


def scales(stage: int, find: Find) -> tuple[Setting, ...]:
    """What the upper levels add at two learning rates, each gate with the share and tuned budgets.

    The budgets were chosen on a seed of `TUNING_SEEDS`, from the runs of `tuning`.
    """
    wider = {"gate.clip_low": 9e-4, "gate.clip_high": 1.2e-3}
    three = {
        f"gate__levels__{level}__budget": 1.2e-3 for level in ("trajectory", "group", "domain")
    }
    alone = {"gate.levels.trajectory.budget": 1.2e-3}
    alone |= {f"gate.levels.{level}.budget": 10.0 for level in ("group", "domain")}
    methods = (
        _shared("silent sequence: three levels", "silent_sequence", **three),
        Setting("GSPO, budgets × 3", "gspo", {"training.step_share": "importance", **wider}),
        Setting(
            "silent sequence: trajectory",
            "silent_sequence",
            {"training.step_share": "importance", **alone},
        ),
    )
    return _over(
        [
            method.on({"η": rate}, optimizer__learning_rate=rate)
            for rate in (3e-3, 1e-3)
            for method in methods
        ],
        stage,
    )


def tuned(stage: int, find: Find) -> tuple[Setting, ...]:
    """The methods of every axis at two rates, each with tuned budgets; ours without levels.

    At the harder rate those with whole steps answer nothing any more on either seed of stage 1, and
    have no others.
    """
    methods = (SIX[5], *MORE, *SIX[:5], ALONE)

    def at(rate: float, methods: Sequence[Setting]) -> list[Setting]:
        return [method.on({"η": rate}, optimizer__learning_rate=rate) for method in methods]

    shared = [method for method in methods if "training.step_share" in method.overrides]
    both = _over([*at(1e-3, methods), *at(3e-3, methods)], 1)
    return both if stage == 1 else _over([*at(3e-3, shared), *at(1e-3, methods)], 2) + both


def rates(stage: int, find: Find) -> tuple[Setting, ...]:
    """Is a smaller learning rate enough? Whole steps at a third and a tenth of it."""
    return _over(
        [
            method.on({"η": rate}, optimizer__learning_rate=rate)
            for rate in (3e-4, 1e-4, 1e-3)
            for method in (SIX[0], SIX[1], SIX[2], SIX[5])
        ],
        stage,
    )


def rate_trials(stage: int, find: Find) -> tuple[Setting, ...]:
    """Learning rate and budgets tuned together, six trials a method; both stages alike."""
    return tuple(trial for trials in _rate_trials().values() for trial in trials)


def own_rates(stage: int, find: Find) -> tuple[Setting, ...]:
    """Every method at a learning rate of its own, the best of its `rate_trials`."""
    best = {name: halving.best(trials, find) for name, trials in _rate_trials().items()}
    return _over(
        [
            dataclasses.replace(trial, method=name, axis={})
            for name, trial in best.items()
            if trial is not None
        ],
        stage,
    )


def _rate_trials() -> dict[str, list[Setting]]:
    return {
        method.method: [
            tried.on({"η": rate}, optimizer__learning_rate=rate).at(TUNING_SEEDS[0])
            for tried in (method, _wider(method, 3))
            for rate in (2e-4, 3e-4, 5e-4)
        ]
        for method in (SIX[5], WHOLE, SIX[1], SIX[2], SIX[0], *MORE, SIX[3])
    }


def _wider(method: Setting, factor: float) -> Setting:
    """A method with all its budgets so much wider."""
    budgets = {
        path: factor * value
        for path, value in method.overrides.items()
        if path.startswith("gate.") and isinstance(value, float)
    }
    return dataclasses.replace(
        method,
        method=f"{method.method}, budgets × {factor:g}",
        overrides={**method.overrides, **budgets},
    )


def peers(stage: int, find: Find) -> tuple[Setting, ...]:
    """All methods with the budgets they are shipped with."""
    return _over(PEERS, stage)


def suspects(stage: int, find: Find) -> tuple[Setting, ...]:
    """Why the published hierarchy collapses: one thing of it changed at a time."""
    gate = "fiberpo_domain"
    published = Setting("published", gate)
    settings = [
        published,
        Setting("(a) side rule", "fiberpo_domain_pessimistic"),
        Setting("(b) gate holds", gate, {"gate.base_gate": "hold"}),
        Setting("(c) exact bundle", gate, {"gate.variant": "exact"}),
        *(_scaled(f"(d) budgets / {part}", gate, 1 / part) for part in (30, 300)),
        Setting("(e) trajectory alone", "fiberpo"),
        Setting("lift bounded", "fiberpo_domain_bounded"),
        _shared("(f) Muon, share", gate),
    ]
    for rate in (1e-4, 3e-4, 1e-3):
        adam = {"optimizer.name": "adamw", "optimizer.learning_rate": rate}
        settings.append(Setting(f"(f) AdamW {rate:g}", gate, adam))
        adam_share = adam | {"training.step_share": "importance"}
        settings.append(Setting(f"(f) AdamW {rate:g}, share", gate, adam_share))
    for rate in (0.01, 0.03, 0.1):  # Its steps are short by themselves: no share.
        sgd = {"optimizer.name": "sgd", "optimizer.learning_rate": rate}
        settings.append(Setting(f"(f) SGD {rate:g}", gate, sgd))
    return _over((*settings, UNSHARED[0], SHARED[0]), stage)


def _scaled(method: str, gate: str, factor: float) -> Setting:
    """A hierarchy with the budgets of all its levels times a number; of tokens as they are."""
    levels = preset(gate)["levels"]
    budgets = {
        f"gate.levels.{name}.budget": [factor * bound for bound in level["budget"]]
        for name, level in levels.items()
    }
    return Setting(method, gate, budgets)


def updates(stage: int, find: Find) -> tuple[Setting, ...]:
    """Updates a batch at equal samples: N = epochs × minibatches."""
    splits = {32: (4, 8), 64: (8, 8), 16: (2, 8), 4: (1, 4), 1: (1, 1)}
    return _over(
        [
            method.on({"N": n}, training__epochs=epochs, training__minibatches=minibatches)
            for n, (epochs, minibatches) in splits.items()
            for method in _methods()
        ],
        stage,
    )


def staleness(stage: int, find: Find) -> tuple[Setting, ...]:
    """Updates between sampling and training, by learning rate.

    A batch of 32 prompts is seen once, in four updates, so S updates are S/4 iterations of the
    queue; those within the batch come on top, 0 to 3. The start gives the first S/4 + 1 batches.
    Ours stands beside its trajectory level alone, for what the others add to old samples, and at
    the higher rate beside that with steps as short as the others make them.
    """
    once = {"iterations": 30, "rollout__prompts": 32}
    once |= {"training__epochs": 1, "training__minibatches": 4}
    settings = [
        method.at(0, optimizer__learning_rate=rate).on(
            {"S": 4 * queue, "η": rate}, staleness=queue, **once
        )
        for queue in (0, 1, 4, 16)
        for rate in (1e-3, 3e-3)
        for method in (*FOUR, ALONE)
    ]
    settings += [
        SHORTER.on({"S": 4 * queue, "η": 3e-3}, staleness=queue, **once) for queue in (0, 1, 4, 16)
    ]
    return _over(settings, stage)


def noise(stage: int, find: Find) -> tuple[Setting, ...]:
    """A sampler that disagrees with the policy: noise on its logits."""
    return _over(
        [
            method.on({"σ": sigma}, noise=sigma)
            for sigma in (0.0, 0.3, 0.1, 0.02)
            for method in _methods()
        ],
        stage,
    )


def eight_bits(stage: int, find: Find) -> tuple[Setting, ...]:
    """A sampler in eight bits: its weights, or the cache of its keys and values."""
    kinds: Mapping[str, Mapping[str, Any]] = {
        "int8 weights": {"rounding": "int8"},
        "float8 weights": {"rounding": "float8"},
        # What a cache rounds must be corrected: a config without is refused.
        "int8 cache, truncated weights": {
            "rollout__cache_dtype": "int8",
            "training__mismatch": "truncate",
        },
    }
    return _over(
        [
            method.on({"sampler": kind}, **changes)
            for kind, changes in kinds.items()
            for method in FOUR
        ],
        stage,
    )


def experts(stage: int, find: Find) -> tuple[Setting, ...]:
    """A mixture of four experts, two a token, with and without the old policy's routes."""
    mixture = {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 96, "norm_topk_prob": True}
    options = {f"policy__{name}": value for name, value in mixture.items()}
    return _over(
        [
            method.on({"routes": routes}, training__router_replay=replayed, **options)
            for routes, replayed in (("old policy's", True), ("its own", False))
            for method in FOUR
        ],
        stage,
    )


def length(stage: int, find: Find) -> tuple[Setting, ...]:
    """Worked answers of about 30, 100 and 300 tokens; the longest for three methods."""
    sizes = {
        30: ((4, 5), (5, 5), (16, 42)),
        100: ((12, 14), (11, 12), (36, 120)),
        300: ((33, 36), (21, 22), (80, 330)),
    }
    settings = []
    for tokens, (operands, digits, window) in sizes.items():
        domains = {
            "running_sum": dict(zip(("min_operands", "max_operands"), operands, strict=True)),
            "selection": dict(zip(("min_length", "max_length"), digits, strict=True)),
        }
        few = (SIX[0], SIX[1], SIX[5])
        for method in few if tokens == 300 else _methods():
            settings.append(method.on({"tokens": tokens}, **_tasks(domains, *window)))
    return _over(settings, stage)


def domains(stage: int, find: Find) -> tuple[Setting, ...]:
    """Domains of 5, 28 and 97 tokens an answer, which drift apart: a case for upper levels."""
    given = {
        "brackets": {"min_length": 4, "max_length": 8},
        "reverse": {"min_length": 25, "max_length": 30, "letters": "0123456789"},
        "running_sum": {"min_operands": 12, "max_operands": 14},
    }
    levels = (SIX[5], *MORE, ALONE, *SIX[:5])
    return _over([method.at(0, **_tasks(given, 36, 120)) for method in levels], stage)


def low_entropy(stage: int, find: Find) -> tuple[Setting, ...]:
    """A start that was taught four times as long, and is surer of itself."""
    return _over([method.at(0, warm_start__steps=1800) for method in _methods()], stage)


def control(stage: int, find: Find) -> tuple[Setting, ...]:
    """A trust region, or a smaller learning rate? Shares of another seed, whatever the gate."""
    shared, replays = [], []
    for seed in SEEDS[:2] if stage == 1 else SEEDS:
        for name, given in (("silent", SIX[5]), ("GSPO", MORE[0])):
            # Of the seed before, so that both of stage 1 have one.
            donor = given.at(seed - 1 if seed > 0 else 1)
            named = dataclasses.replace(given, method=f"{name}, share", seed=seed)
            whole = _whole_steps(given)
            shared += [named, Setting(f"{name}, whole steps", given.gate, whole, seed=seed)]
            for gate, options, what in (
                (given.gate, whole, name),
                ("importance", {}, "no gate"),
            ):
                replays += [
                    Setting(
                        f"{what}, {form} of {name}",
                        gate,
                        options,
                        seed=seed,
                        replay=Replay(donor, form),
                    )
                    for form in ("sequence", "mean")
                ]
    return (*shared, *replays)


def references(stage: int, find: Find) -> tuple[Setting, ...]:
    """What the open coefficients are compared with, the share by level, and no momentum."""
    settings = []
    for name, gate in (("silent", "silent_domain"), ("GSPO", "gspo")):
        for reference in ("importance", "limit", "on_policy"):
            given = {"training.step_share": reference}
            settings.append(Setting(f"{name}, {reference}", gate, given))
        still = Setting(f"{name}, no momentum", gate, {"optimizer.b1": 0.0})
        settings += [still, _shared(f"{name}, importance, no momentum", gate, optimizer__b1=0.0)]
    settings.append(Setting("silent, levels", "silent_domain", {"training.step_share": "levels"}))
    return _over(settings, stage)


def by_level(stage: int, find: Find) -> tuple[Setting, ...]:
    """The share level by level, and as much of a shorter step by a lower rate instead.

    Level by level the share of the shipped gate is .81 of what it is of all levels together.
    """
    settings = []
    for rate, less in ((1e-3, 8e-4), (3e-3, 2.4e-3)):
        levels = SIX[5].at(0, training__step_share="levels", optimizer__learning_rate=rate)
        lower = SIX[5].at(0, optimizer__learning_rate=less)
        for name, of in (("share by level", levels), ("share, rate × .8", lower)):
            settings.append(dataclasses.replace(of, method=name).on({"η": rate}))
    return _over(settings, stage)


def momentum(stage: int, find: Find) -> tuple[Setting, ...]:
    """Steps with the optimizer's momentum and without, at rates a factor of three apart.

    If momentum only lengthens the way, a rate without it ends as a third of it does with it. At the
    highest rate whole steps with momentum have no seed beyond those of stage 1 in `tuned`.
    """
    methods = (WHOLE, SIX[1], SIX[5], *MORE, SIX[0], *SIX[2:5])
    five = (SIX[5], *MORE, SIX[1], SIX[0], SIX[2])

    def at(b1: float, rate: float, methods: Sequence[Setting] = methods) -> list[Setting]:
        return [
            method.on({"b1": b1, "η": rate}, optimizer__b1=b1, optimizer__learning_rate=rate)
            for method in methods
        ]

    still = [*at(0.0, 1e-3), *at(0.0, 3e-3), *at(0.0, 1e-2, five), *at(0.0, 3e-4)]
    moving = [*at(0.9, 1e-3), *at(0.9, 3e-3), *at(0.9, 3e-4, five)]
    return (*_over(still, stage), *_over(moving, 1))


def momentum_adam(stage: int, find: Find) -> tuple[Setting, ...]:
    """Whole steps of AdamW with its momentum and without."""
    return _over(
        [
            method.on(
                {"b1": b1, "η": rate},
                optimizer__name="adamw",
                optimizer__b1=b1,
                optimizer__learning_rate=rate,
            )
            for rate in (3e-4, 1e-3)
            for b1 in (0.0, 0.9)
            for method in (WHOLE, SIX[1])
        ],
        stage,
    )


def room(stage: int, find: Find) -> tuple[Setting, ...]:
    """What the upper levels add without momentum, at rates that are too high."""
    return _over(
        [
            method.on({"η": rate}, optimizer__b1=0.0, optimizer__learning_rate=rate)
            for rate in (3e-3, 1e-2)
            for method in (SIX[5], *MORE, ALONE)
        ],
        stage,
    )


def variants(stage: int, find: Find) -> tuple[Setting, ...]:
    """What the authors did since, over the published hierarchy and over ours.

    The published form falls at once at the usual rate; at a smaller one and without momentum it
    learns, so that a variant could be better there.
    """
    gate = "fiberpo_domain"
    # The budget that they took for trajectories, at all levels.
    budgets = {f"gate.levels.{level}.budget": 0.2 for level in preset(gate)["order"]}
    published = (
        Setting("published", gate),
        Setting("re-signed, r − 1", "fiberpo_domain_resigned"),
        Setting("authors' numbers", gate, {**budgets, "gate.epsilon": 0.2}),
        Setting("r − 1", gate, {"gate.deviation": "ratio"}),
        Setting("bad tokens free upwards", gate, {"gate.upper_negative": 20.0}),
        Setting("dispersion", gate, {"gate.budget_scale": "dispersion"}),
    )
    dispersed = {"gate__budget_scale": "dispersion"}
    upper = {f"gate__levels__{level}__budget": 0.012 for level in ("group", "domain")}
    ours = [
        dataclasses.replace(SIX[5].at(0, **dispersed, **wider), method=f"{SIX[5].method}, {name}")
        for name, wider in (("dispersion", {}), ("dispersion, upper budgets × 3", upper))
    ]

    def at(b1: float, rate: float, methods: Sequence[Setting]) -> list[Setting]:
        return [
            method.on({"b1": b1, "η": rate}, optimizer__b1=b1, optimizer__learning_rate=rate)
            for method in methods
        ]

    places = (*at(0.0, 3e-4, published), *at(0.9, 3e-3, ours), *at(0.9, 1e-3, (*ours, *published)))
    return _over(places, stage)


def target_kl(stage: int, find: Find) -> tuple[Setting, ...]:
    """Updates left out beyond a KL from the policy that sampled, whatever the gate."""
    four = (WHOLE, SIX[1], SIX[0], NO_GATE)
    methods = (*four, SIX[5], *SIX[2:5], *MORE)
    return _over(
        [
            method.on({"KL": kl, "η": rate}, training__target_kl=kl, optimizer__learning_rate=rate)
            for kl, rate, methods in (
                (0.01, 1e-3, methods),
                (0.01, 3e-3, methods),
                (0.003, 1e-3, four),
            )
            for method in methods
        ],
        stage,
    )


def held_steps(stage: int, find: Find) -> tuple[Setting, ...]:
    """Steps whose length follows the run, so that a KL is held, whatever the gate.

    Is the KL to hold only another number to search for? Three methods at a fourth of it and at four
    times as much; and at a rate that is too low, from where steps become longer.
    """
    methods = (WHOLE, SIX[1], SIX[0], NO_GATE, SIX[5])
    few = (SIX[5], SIX[1], NO_GATE)

    def held(method: Setting, kl: float, rate: float) -> Setting:
        control = {"of": "steps", "kind": "kl", "target": kl, "gain": 1.0}
        control |= {"end": 1.0, "largest": 100.0}
        place = {"KL": kl, "η": rate}
        return method.on(place, budget_control=control, optimizer__learning_rate=rate)

    return _over(
        [
            held(method, kl, rate)
            for kl, rate, methods in (
                *((0.005, rate, methods) for rate in (3e-3, 1e-3)),
                (0.005, 1e-4, few),
                *((kl, rate, few) for kl in (0.02, 0.00125) for rate in (3e-3, 1e-3)),
            )
            for method in methods
        ],
        stage,
    )


def budgets(stage: int, find: Find) -> tuple[Setting, ...]:
    """Every method's budgets on the tuning seeds, by successive halving; both stages alike."""
    return halving.settings(find)


def _methods() -> tuple[Setting, ...]:
    """Those of an axis, ours first."""
    return (SIX[5], *MORE, *SIX[:5])


def _tasks(domains: Mapping[str, Any], prompt: int, completion: int) -> dict[str, Any]:
    """Overrides of what is taught and how long it may be."""
    return {
        "tasks__domains": domains,
        "window__prompt": prompt,
        "window__completion": completion,
    }


FIGURES: Mapping[str, Figure] = {
    figure.__name__: figure
    for figure in (
        table,
        share,
        hard,
        tuning,
        scales,
        tuned,
        rates,
        rate_trials,
        own_rates,
        peers,
        suspects,
        updates,
        staleness,
        noise,
        eight_bits,
        experts,
        length,
        domains,
        low_entropy,
        control,
        references,
        by_level,
        momentum,
        momentum_adam,
        room,
        variants,
        target_kl,
        held_steps,
        budgets,
    )
}
"""Name of a figure -> its settings by stage, in the order they run."""
