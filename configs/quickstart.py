"""Trust regions at three scales from nothing to a trained policy, in minutes on a laptop.

    python experiments/train.py --config=configs/quickstart.py --workdir=runs/quickstart

The argument after the colon picks a gate of `configs/gates.py`: `configs/quickstart.py:gspo`.
"""

from ml_collections import ConfigDict

from configs import gates


def get_config(gate: str = gates.DEFAULT) -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = ConfigDict()
    config.seed = 0
    config.iterations = 30

    config.tasks = ConfigDict()
    config.tasks.data_dir = "data"
    # Short answers (brackets, reverse, sort) beside worked ones of 27 to 50 tokens.
    config.tasks.domains = ConfigDict(
        {
            "brackets": {"min_length": 4, "max_length": 8},
            "reverse": {"min_length": 4, "max_length": 7, "letters": "0123456789"},
            "running_sum": {"min_operands": 5, "max_operands": 6},
            "selection": {"min_length": 6, "max_length": 7},
            "sort": {"min_length": 6, "max_length": 9},
        }
    )
    config.tasks.reasoning_gym = ""
    config.tasks.num_train = 4000
    config.tasks.num_test = 500
    config.tasks.seed = 0
    config.tasks.file = ""
    config.tasks.test_file = ""
    config.tasks.columns = ConfigDict({"prompt": "", "answer": "", "domain": "", "solution": ""})
    config.tasks.layout = ""
    config.tasks.keep = ()
    config.tasks.verifier = "auto"
    config.tasks.verifiers = ()  # By domain, where they differ.
    config.tasks.duplicates = "once"
    config.tasks.too_long = "refuse"
    config.tasks.pass_threshold = 1.0
    config.tasks.vocabulary = "characters"

    config.rewards = ConfigDict()
    config.rewards.workers = 4
    config.rewards.seconds = 5.0
    config.rewards.megabytes = 1024.0
    config.rewards.failed = "zero"
    config.rewards.format = ""
    config.rewards.truncated = "score"
    config.rewards.overlong_cache = 0
    config.rewards.overlong_from = 0
    config.rewards.golds = "refuse"
    config.rewards.shown = 32

    # Above the trajectory, finest first: a name, and the column of the data that says who belongs
    # together. The empty column is the prompt.
    config.levels = (("group", ""), ("domain", "domain"))

    config.window = ConfigDict({"prompt": 16, "completion": 52})

    # Several turns, between which an environment answers, such as "calculator".
    config.turns = ConfigDict({"environment": "", "limit": 1, "reply": 0})
    config.turns.role = "user"
    config.turns.read = "last"

    config.model = ConfigDict()
    config.model.folder = ""  # Of a published model, which then says what is not computing below.
    config.model.tokenizer = "auto"
    config.model.overrides = ConfigDict()
    config.model.chat = "auto"
    config.model.system = ""
    config.model.examples = ()
    config.model.thinking = "auto"
    config.model.stop = ()
    config.model.warm_start = False

    config.policy = ConfigDict()
    config.policy.vocab_size = 0  # The tokenizer's.
    config.policy.embed_dim = 64
    config.policy.num_layers = 2
    config.policy.num_heads = 4
    config.policy.num_kv_heads = 2
    config.policy.head_dim = 16
    config.policy.mlp_dim = 192
    config.policy.num_experts = 0
    config.policy.experts_per_token = 0
    config.policy.norm_topk_prob = False
    config.policy.activation = "silu"
    config.policy.rope_theta = 10_000.0
    config.policy.rope_type = "default"
    config.policy.rope_scaling = ()
    config.policy.layer_pattern = ("full",)
    config.policy.sliding_window = 0
    config.policy.local_rope_theta = 0.0
    config.policy.norm_epsilon = 1e-6
    config.policy.norm_offset = False
    config.policy.post_norms = False
    config.policy.qk_norm = True
    config.policy.qkv_bias = False
    config.policy.query_pre_attn_scalar = 0.0
    config.policy.scale_embeddings = False
    config.policy.tie_embeddings = True
    config.policy.compute_dtype = "float32"
    config.policy.remat = "full"
    config.policy.attention = "auto"

    config.lora = ConfigDict()
    config.lora.rank = 0  # Trains all parameters.
    config.lora.alpha = 32.0
    config.lora.targets = ("all-linear",)
    config.lora.base_dtype = "float32"

    config.warm_start = ConfigDict()
    config.warm_start.directory = "runs/warm_starts"
    config.warm_start.steps = 450
    config.warm_start.batch_size = 64
    config.warm_start.flawed = 0.6
    config.warm_start.optimizer = "muon"
    config.warm_start.learning_rate = 1.5e-2
    config.warm_start.weight_decay = 0.01

    config.rollout = ConfigDict()
    config.rollout.prompts = 128
    config.rollout.samples = 16
    config.rollout.temperature = 1.0
    config.rollout.top_k = 0
    config.rollout.top_p = 1.0
    config.rollout.max_rows = 0
    config.rollout.slots = 0
    config.rollout.cache_dtype = ""
    config.rollout.engine = "own"
    config.rollout.resample = 0
    config.rollout.lag = 0
    config.rollout.devices = 0
    config.rollout.shuffle_rewards = False  # A control: True teaches nothing.

    config.training = ConfigDict()
    config.training.epochs = 1
    config.training.minibatches = 4
    config.training.micro_batches = 4  # Packed, a minibatch needs two or three of them.
    config.training.packing = True
    config.training.weighting = "trajectory"
    config.training.entropy_coefficient = 0.0
    config.training.kl_coefficient = 0.0
    config.training.kl_estimator = "k3"
    config.training.kl_ratio_weight = True
    config.training.target_kl = 0.0
    config.training.edge = "update"
    config.training.old_log_probs = "trainer"
    config.training.old_log_probs_gap = 1e-3
    config.training.step_share = gates.step_share(gate)
    config.training.mismatch = "none"
    config.training.router_replay = False
    config.training.mismatch_cap = 2.0
    config.training.mismatch_floor = 0.5
    config.training.chunk = 0
    config.training.nonfinite = "skip"
    config.training.unpaid_iterations = 5

    config.gate = gates.get_gate(gate)
    config.advantage = "grpo"

    config.control = ConfigDict()
    config.control.of = "budgets"
    config.control.kind = "none"
    config.control.target = 0.0
    config.control.gain = 0.5
    config.control.end = 1.0
    config.control.largest = 100.0

    config.optimizer = ConfigDict()
    config.optimizer.name = "muon"
    config.optimizer.schedule = "linear"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 10
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.decay_all = False
    config.optimizer.clip_norm = 1.0
    config.optimizer.moment_dtype = "float32"

    config.curriculum = ConfigDict()
    config.curriculum.start = 0.8
    config.curriculum.end = 0.2
    config.curriculum.sigma = 0.5
    config.curriculum.rate = 0.5
    config.curriculum.profile_samples = 0
    config.curriculum.domain_probability = ConfigDict()

    config.evaluation = ConfigDict({"prompts": 400, "samples": 4, "batch": 200})
    config.evaluation.every = 10
    config.evaluation.curve_prompts = 40
    config.evaluation.temperature = 1.0
    config.evaluation.top_k = 0
    config.evaluation.top_p = 1.0
    config.keep = ConfigDict({"samples": 2, "every": 1, "show_every": 10, "megabytes": 100.0})
    config.keep.rollouts = "every 10, every 20 from 1"
    config.keep.rollouts_megabytes = 500.0
    config.diagnostics = ConfigDict({"every": 1})
    config.checkpoint = ConfigDict({"every": 20, "keep": 2, "best": "", "best_mode": "max"})
    config.stop = ConfigDict({"metric": "", "patience": 3, "min_delta": 0.0, "mode": "max"})
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "sequence": 1, "tensor": 1})
    # Of another program that draws; read where config.rollout.engine is "http".
    config.server = ConfigDict(
        {
            "url": "",
            "model": "",
            "folder": "",
            "reload": "/update_weights_from_disk",
            "reload_body": '{"model_path": "{folder}"}',
            "dtype": "bfloat16",
            "timeout": 600.0,
            "retries": 2,
            "concurrency": 64,
        }
    )

    config.writers = ("jsonl", "tensorboard")
    config.plugins = ()  # Files of your own, with gates, rewards and estimators.
    return config
