"""Deliberate faults of the readers of other trainers' token dumps; see `mutants.py`."""

from faults_of_mathematics import Mutant

FOREIGN = "fiberjax/analysis/foreign.py"
OF_FOREIGN = "tests/analysis/test_foreign.py"

FAULTS = (
    Mutant(
        "prompts of verl are known by their padding alone",
        FOREIGN,
        'prompts = dump.lists("prompts") if dump.has("prompts") else None',
        "prompts = None",
        (f"{OF_FOREIGN}::test_what_verl_wrote_is_the_same_padded_or_not",),
    ),
    Mutant(
        "one rank's file stands for the step",
        FOREIGN,
        "    for file in files:\n",
        "    for file in files[:1]:\n",
        (f"{OF_FOREIGN}::test_what_prime_rl_exports_is_read_as_it_is",),
    ),
    Mutant(
        "prime-rl's environments are no domains",
        FOREIGN,
        'prompts, reward, "env_name")',
        "prompts, reward)",
        (f"{OF_FOREIGN}::test_what_prime_rl_exports_is_read_as_it_is",),
    ),
)
