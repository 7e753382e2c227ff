"""Deliberate faults of what is looked at after a run: tokens, reasons, the page; see `mutants`."""

from faults_of_mathematics import Mutant

BLOCKS = "fiberjax/analysis/blocks.py"
LIST = "fiberjax/analysis/static/list.js"
LOOK = "fiberjax/analysis/look.py"
MEASURES = "fiberjax/analysis/measures.py"
PAGE = "fiberjax/analysis/page.py"
PANEL = "fiberjax/analysis/static/panel.js"
STAGES = "fiberjax/analysis/stages.py"
TOKENS = "fiberjax/analysis/tokens.py"
WHY = "fiberjax/analysis/why.py"
OF_BROWSER = "tests/analysis/test_browser.py"
OF_LOOK = "tests/analysis/test_look.py"
OF_PAGE = "tests/analysis/test_page.py"
OF_TOKENS = "tests/analysis/test_tokens.py"
OF_WHY = "tests/analysis/test_why.py"

FAULTS = (
    Mutant(
        "a token's parts are taken in float32",
        TOKENS,
        "stages[name].astype(np.float64) for name in names",
        "stages[name] for name in names",
        (f"{OF_TOKENS}::test_parts_add_up_to_the_coefficient_exactly",),
    ),
    Mutant(
        "all optimizer batches are gated as one",
        TOKENS,
        "batch = seen(kept, {LABEL: objective}, number)",
        "batch = seen(kept, {LABEL: objective})",
        (f"{OF_TOKENS}::test_coefficients_are_the_library_s_of_each_optimizer_batch",),
    ),
    Mutant(
        "a gate reads the advantage times its weight and the credit is the advantage",
        STAGES,
        "            of_advantage,\n            log_ratio,\n            credit,\n",
        "            of_advantage,\n            log_ratio,\n            advantage,\n",
        (f"{OF_TOKENS}::test_coefficients_are_the_library_s_of_each_optimizer_batch",),
    ),
    Mutant(
        "levels are closed finest first",
        STAGES,
        "probes.open_levels(inner, levels=tuple(gated[:k]), token=True)",
        "probes.open_levels(inner, levels=tuple(gated[len(gated) - k :]), token=True)",
        (f"{OF_TOKENS}::test_parts_are_what_each_level_adds",),
    ),
    Mutant(
        "the reasons read the other direction of a level",
        WHY,
        "int(self._tokens.kept.advantage[row, column] < 0)",
        "int(self._tokens.kept.advantage[row, column] > 0)",
        (f"{OF_WHY}::test_a_step_is_closed_where_the_gate_s_level_is",),
    ),
    Mutant(
        "a gradient is said to have vanished at the level before",
        WHY,
        "name = list(tokens.parts)[int(back[-1]) + 1]",
        "name = list(tokens.parts)[int(back[-1])]",
        (f"{OF_WHY}::test_a_silent_chain_says_where_the_gradient_vanished",),
    ),
    Mutant(
        "a bound from below is read from above",
        MEASURES,
        "'within' if low <= value <= high else 'beyond'",
        "'within' if value <= high else 'beyond'",
        (f"{OF_WHY}::test_a_measure_is_beyond_its_bound_where_the_gate_closes",),
    ),
    Mutant(
        "the index of a page is not escaped",
        PAGE,
        'for character in "<>&":',
        'for character in "":',
        (f"{OF_PAGE}::test_texts_are_no_markup",),
    ),
    Mutant(
        "a page allows any script",
        PAGE,
        "script=_digest(script)",
        "script=\"'unsafe-inline'\"",
        (f"{OF_PAGE}::test_the_policy_allows_the_page_s_own_script_and_style_alone",),
    ),
    Mutant(
        "marks that turn the direction of writing reach the page",
        BLOCKS,
        '"texts": [visible(of) for of in texts],',
        '"texts": list(texts),',
        (f"{OF_PAGE}::test_blocks_show_what_does_not_print",),
    ),
    Mutant(
        "numbers of a block are laid out by token",
        BLOCKS,
        "np.stack([of.values[row, mask[row]] for of in self.quantities])",
        "np.stack([of.values[row, mask[row]] for of in self.quantities], axis=1)",
        (f"{OF_PAGE}::test_the_numbers_of_a_page_are_the_library_s_bit_by_bit",),
    ),
    Mutant(
        "filters by reward pass over those below",
        LIST,
        "!(of.reward < least)",
        "!(of.reward > least)",
        (f"{OF_BROWSER}::test_filters_leave_what_they_say",),
    ),
    Mutant(
        "the panel shows another token's numbers",
        PANEL,
        "const value = trajectory.numbers[quantity.name][k];",
        "const value = trajectory.numbers[quantity.name][0];",
        (f"{OF_BROWSER}::test_pointing_shows_the_numbers_and_the_reasons_of_the_library",),
    ),
    Mutant(
        "the page is of the policy that drew",
        LOOK,
        "return kept.with_log_prob(policy.log_prob(kept)), policy,",
        "return kept, policy,",
        (f"{OF_LOOK}::test_a_page_is_of_the_policy_after_the_updates",),
    ),
)
