"""Deliberate faults of what can be watched of a run; see `mutants.py`."""

from faults_of_mathematics import Mutant

SHOWN = "tests/run/test_shown.py"
ROLLOUTS = "tests/run/test_rollouts.py"
WATCHING = "tests/run/test_watching.py"
BEST = "tests/run/test_best.py"
GATE_PICTURES = "tests/analysis/test_gate_pictures.py"
LEVEL_PICTURES = "tests/analysis/test_level_pictures.py"
TOKEN_PICTURES = "tests/analysis/test_token_pictures.py"

FAULTS = (
    Mutant(
        "the terminal obeys what a model writes",
        "fiberjax/run/shown.py",
        "each if each.isprintable() else _sign(ord(each))",
        "each",
        (f"{SHOWN}::test_the_terminal_obeys_no_text",),
    ),
    Mutant(
        "markup in a sample is rich's",
        "fiberjax/run/shown.py",
        "table.add_row(*(Text(cell) for cell in cells)",
        "table.add_row(*cells",
        (f"{SHOWN}::test_the_terminal_obeys_no_text",),
    ),
    Mutant(
        "lines of a text leave the block of code",
        "fiberjax/run/shown.py",
        '"\\n".join(f"    {line}" for line in _lines(row))',
        '"    " + "\\n".join(_lines(row))',
        (f"{SHOWN}::test_markdown_keeps_every_line_within_a_block_of_code",),
    ),
    Mutant(
        "a sign that the console lacks ends the run",
        "fiberjax/run/shown.py",
        'text.encode(console.encoding, "backslashreplace")',
        "text.encode(console.encoding)",
        (f"{SHOWN}::test_a_console_that_lacks_a_sign_gets_its_escape",),
    ),
    Mutant(
        "the name of a domain is a formula",
        "fiberjax/run/plots.py",
        '.replace("$", r"\\$")',
        "",
        (f"{SHOWN}::test_names_of_domains_are_texts_of_a_file_too",),
    ),
    Mutant(
        "a sample has the completion of another prompt",
        "fiberjax/run/evaluation.py",
        "here * wanted.samples,",
        "here,",
        (f"{ROLLOUTS}::test_an_evaluation_keeps_the_first_prompts_of_each_domain",),
    ),
    Mutant(
        "samples of a killed run stay",
        "fiberjax/run/rollouts.py",
        'if int(file.name.partition("-")[0]) > iteration:',
        "if False:",
        (f"{ROLLOUTS}::test_a_folder_goes_on_from_an_iteration_and_writes_the_same_bytes",),
    ),
    Mutant(
        "samples know no limit",
        "fiberjax/run/rollouts.py",
        "if self.full or before >= self._limit:",
        "if self.full:",
        (f"{ROLLOUTS}::test_a_folder_grows_to_its_limit_whether_or_not_it_was_resumed",),
    ),
    Mutant(
        "a greedy evaluation draws",
        "fiberjax/experiment.py",
        "return dataclasses.replace(sampler, greedy=True)",
        "return sampler",
        (f"{ROLLOUTS}::test_greedy_evaluations_take_the_likeliest_tokens",),
    ),
    Mutant(
        "any gain is better",
        "fiberjax/run/best.py",
        "gain > self._min_delta",
        "gain > 0",
        (f"{BEST}::test_only_what_is_better_by_more_than_min_delta_is_the_best",),
    ),
    Mutant(
        "what is not finite is the best",
        "fiberjax/run/best.py",
        "if math.isfinite(value) and (",
        "if (",
        (f"{BEST}::test_what_is_not_finite_is_never_the_best",),
    ),
    Mutant(
        "the best checkpoint is dropped",
        "fiberjax/run/checkpoints.py",
        "[checkpoint.step == self.iteration for checkpoint in checkpoints]",
        "[False for checkpoint in checkpoints]",
        (f"{WATCHING}::test_checkpoints_name_their_best",),
    ),
    Mutant(
        "a resumed run has forgotten that it stopped",
        "fiberjax/run/loop.py",
        'stop.set_state(found.host.get("stop"))',
        "stop.set_state(None)",
        (f"{WATCHING}::test_a_run_stops_early_and_stays_so_until_its_rule_changes",),
    ),
    Mutant(
        "the curve begins with other prompts",
        "fiberjax/run/evaluation.py",
        "kept = rollouts.rank(self.domain) < prompts",
        "kept = np.arange(len(self.domain)) < prompts * 2",
        (f"{WATCHING}::test_the_curve_begins_with_the_prompts_that_it_goes_on_with",),
    ),
    Mutant(
        "an iteration without an evaluation is a point of the curve",
        "fiberjax/run/plots.py",
        "use = np.isfinite(columns[name])\n        x, y",
        "use = np.isfinite(columns['step'])\n        x, y",
        ("tests/run/test_plots.py::test_a_curve_is_drawn_at_its_points_alone",),
    ),
    Mutant(
        "two gates of a picture are drawn alike",
        "fiberjax/analysis/gate_pictures.py",
        "log_ratio = jnp.zeros((1, tokens)).at[0, tokens // 2].set(drift)",
        "log_ratio = jnp.zeros((1, tokens)).at[0, tokens // 2].set(0 * drift)",
        (f"{GATE_PICTURES}::test_no_two_panels_are_alike_and_each_has_its_legend",),
    ),
    Mutant(
        "a sweep moves one channel of a budget",
        "fiberjax/analysis/level_pictures.py",
        'stacked.budgets["budgets"][level] = np.repeat(tried[:, None], 2, axis=1)',
        'stacked.budgets["budgets"][level] = np.stack([0 * tried + 0.1, tried], axis=1)',
        (f"{LEVEL_PICTURES}::test_a_sweep_is_the_gate_at_each_budget_in_one_program",),
    ),
    Mutant(
        "levels of an attribution are told in another order",
        "fiberjax/probes.py",
        'zip(("open", *reversed(levels), "token"), added, strict=True)',
        'zip(("open", *levels, "token"), added, strict=True)',
        (f"{LEVEL_PICTURES}::test_rows_of_the_attribution_add_up_to_the_last",),
    ),
    Mutant(
        "a token that the gate left alone is called changed",
        "fiberjax/analysis/token_pictures.py",
        "taken = np.where(mask, np.abs(tokens.coefficient - tokens.parts[OPEN]), 0)",
        "taken = np.where(mask, np.abs(tokens.coefficient), 0)",
        (f"{TOKEN_PICTURES}::test_the_most_changed_token_is_one_that_the_gate_changes_most",),
    ),
    Mutant(
        "a model's text is markup in a notebook",
        "fiberjax/analysis/run_pictures.py",
        "domain, prompt, right, before = (cell(shortened(text)) for text in texts)",
        "domain, prompt, right, before = (shortened(text) for text in texts)",
        (
            "tests/analysis/test_run_pictures.py::"
            "test_the_same_prompts_stand_side_by_side_and_texts_are_no_markup",
        ),
    ),
    Mutant(
        "what has been compiled counts in every iteration",
        "fiberjax/run/trainer.py",
        "before, self._compiling = self._compiling, compiled.seconds()",
        "before, self._compiling = 0.0, compiled.seconds()",
        ("tests/run/test_loop.py::test_nothing_is_compiled_after_the_first_iteration",),
    ),
)
