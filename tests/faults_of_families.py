"""Deliberate faults of the decoder and of what is read of published folders; see `mutants.py`."""

from faults_of_mathematics import Mutant

_FAMILIES = "tests/policy/test_families.py"
_WEIGHTS = "tests/policy/test_weights.py"
_EXPERTS = "tests/policy/test_experts.py"
_LOGITS = f"{_FAMILIES}::test_logits_and_log_probs_are_those_of_transformers"
_GREEDY = f"{_FAMILIES}::test_greedy_tokens_are_those_of_transformers_and_the_trainer_agrees"

FAULTS = (
    Mutant(
        "long wavelengths of llama3 are not stretched",
        "fiberjax/policy/rope.py",
        "np.where(wavelength > longest, plain / factor, plain)",
        "plain",
        ("tests/policy/test_rope.py::test_frequencies_are_those_of_transformers",),
    ),
    Mutant(
        "cosines of yarn are not multiplied",
        "fiberjax/policy/rope.py",
        "(cos * scale, sin * scale)",
        "(cos, sin)",
        (f"{_LOGITS}[llama_yarn]",),
    ),
    Mutant(
        "a window is one token wider",
        "fiberjax/policy/attention.py",
        "seen & (distance < window)",
        "seen & (distance <= window)",
        (f"{_LOGITS}[mistral]",),
    ),
    Mutant(
        "the kernel's window is one token wider",
        "fiberjax/policy/attention.py",
        "window_size=(window - 1, 0)",
        "window_size=(window, 0)",
        ("tests/policy/test_attention.py::test_windows_are_those_of_a_loop",),
    ),
    Mutant(
        "the sampler reads beyond the window",
        "fiberjax/policy/transformer.py",
        "seen, old, window=window)",
        "seen, old)",
        (f"{_GREEDY}[mistral]",),
    ),
    Mutant(
        "sliding layers rotate as full ones",
        "fiberjax/policy/transformer.py",
        "zip(local, full, strict=True)",
        "zip(full, full, strict=True)",
        (f"{_LOGITS}[gemma3]",),
    ),
    Mutant(
        "scores are divided by the root of the head's width alone",
        "fiberjax/policy/config.py",
        "float(self.query_pre_attn_scalar or self.head_dim)",
        "float(self.head_dim)",
        (f"{_LOGITS}[gemma3]",),
    ),
    Mutant(
        "a pattern of layers is kept as it is written",
        "fiberjax/policy/config.py",
        "kinds[n:] == kinds[: num_layers - n]",
        "n == num_layers",
        (
            "tests/policy/test_transformer.py"
            "::test_patterns_of_layers_are_kept_in_their_shortest_form",
        ),
    ),
    Mutant(
        "what attention gives is not normed",
        "fiberjax/policy/layers.py",
        "x + (self.attention_post_norm(attended) if self.post_norms else attended)",
        "x + attended",
        (f"{_LOGITS}[gemma3]",),
    ),
    Mutant(
        "shares of a token's experts do not add up to one",
        "fiberjax/policy/experts.py",
        "if self.renormalise:",
        "if False:",
        (f"{_EXPERTS}::test_the_router_takes_the_likeliest",),
    ),
    Mutant(
        "gradients of sorted tokens stay sorted",
        "fiberjax/policy/experts.py",
        "(gradient[back], None, None)",
        "(gradient, None, None)",
        (f"{_EXPERTS}::test_gradients_are_those_of_all_experts_on_all_tokens",),
    ),
    Mutant(
        "the sampler's router is cast",
        "fiberjax/policy/sampler.py",
        'or path[-2].key == "router"',
        "",
        (f"{_EXPERTS}::test_sampler_and_trainer_route_alike_in_bfloat16",),
    ),
    Mutant(
        "what other devices' experts add is left out",
        "fiberjax/parallel/shardings.py",
        'return jax.lax.psum(local(first, x, share, expert, *kernels), "tensor")',
        "return local(first, x, share, expert, *kernels)",
        (f"{_FAMILIES}::test_eight_devices_agree_with_one[qwen3_moe]",),
    ),
    Mutant(
        "full layers take the kernel of sliding ones",
        "fiberjax/parallel/shardings.py",
        "window == self.window",
        "window != self.window",
        (f"{_FAMILIES}::test_the_kernel_takes_layers_of_both_kinds",),
    ),
    Mutant(
        "epsilons are compared as they are written",
        "fiberjax/policy/weights.py",
        "np.float32(ours) == np.float32(theirs)",
        "ours == theirs",
        (f"{_WEIGHTS}::test_epsilons_are_compared_as_float32",),
    ),
    Mutant(
        "the layer at max_window_layers does not slide",
        "fiberjax/policy/families.py",
        "if layer >= first",
        "if layer > first",
        (f"{_WEIGHTS}::test_configs_that_differ_are_refused",),
    ),
    Mutant(
        "numbers of a rotary kind that are not known are passed over",
        "fiberjax/policy/families.py",
        'given.problems.append(f"{name} of rope type',
        'str(f"{name} of rope type',
        ("tests/policy/test_rope.py::test_what_is_not_understood_is_refused_by_name",),
    ),
    Mutant(
        "Muon joins a matrix with its neighbours of the layer",
        "fiberjax/optimizers.py",
        "MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)",
        "MuonDimensionNumbers(1, 2)",
        ("tests/test_optimizers.py::test_muon_turns_the_matrix_of_each_expert_by_itself",),
    ),
    Mutant(
        "blocks before the first count under a window",
        "fiberjax/plans/costs.py",
        "blocks * width - width * (width - 1) // 2",
        "blocks * width",
        ("tests/plans/test_costs.py::test_kernels_count_the_blocks_that_they_compute",),
    ),
    Mutant(
        "a plan counts the experts that a token does not meet",
        "fiberjax/plans/plan.py",
        "count -= 3 * config.num_layers * idle",
        "count -= 0 * config.num_layers * idle",
        ("tests/plans/test_plan.py::test_a_token_meets_its_own_experts_alone",),
    ),
    Mutant(
        "cuDNN scales scores by the width of a head whatever the model says",
        "fiberjax/policy/attention.py",
        "        scale=scale,\n        is_causal=True,",
        "        is_causal=True,",
        ("tests/policy/test_attention.py::test_what_cudnn_is_asked_for_is_dense",),
    ),
)
