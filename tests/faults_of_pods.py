"""Deliberate faults of how pods are laid out and what their plans count; see `mutants`."""

from faults_of_mathematics import Mutant

SHARDINGS = "fiberjax/parallel/shardings.py"
OVERLAP = "fiberjax/plans/overlap.py"
COSTS = "fiberjax/plans/costs.py"
TILES = "tests/parallel/test_tiles.py"
REPLICAS = "tests/parallel/test_replicas.py"
OF_OVERLAP = "tests/plans/test_overlap.py"

FAULTS = (
    Mutant(
        "parameters are split into parts thinner than a tile",
        SHARDINGS,
        "size % (least * parts) == 0",
        "size % parts == 0",
        (f"{TILES}::test_parts_are_whole_tiles_where_replicas_are_small",),
    ),
    Mutant(
        "replicas are added whatever they hold",
        SHARDINGS,
        "return parts if held <= REPLICA_BYTES else fsdp",
        "return parts",
        (f"{TILES}::test_the_bound_on_replicas_is_of_what_a_device_holds",),
    ),
    Mutant(
        "a number of shards that was asked for is changed",
        "fiberjax/experiment.py",
        "if sizes.fsdp == -1:",
        "if True:",
        (f"{TILES}::test_what_is_left_to_fsdp_is_whole_tiles",),
    ),
    Mutant(
        "replicas lie askew",
        "fiberjax/parallel/mesh.py",
        "for order in orders for at in first]",
        "for order in orders for at in order]",
        (f"{TILES}::test_replicas_are_translations_of_the_first",),
    ),
    Mutant(
        "a product hides every exchange that it stands beside",
        OVERLAP,
        "room[instruction.name] -= hidden",
        "pass",
        (f"{OF_OVERLAP}::test_a_product_hides_one_exchange_at_a_time",),
    ),
    Mutant(
        "an exchange ends in its own round or is not seen",
        OVERLAP,
        "(*range(first + 1, len(order)), *range(first))",
        "range(first + 1, len(order))",
        (f"{OF_OVERLAP}::test_an_exchange_may_end_in_the_next_round",),
    ),
    Mutant(
        "sums that are scattered count as sent twice",
        COSTS,
        'callee.startswith("%all-reduce-scatter")',
        "False",
        (f"{OF_OVERLAP}::test_sums_that_are_scattered_are_sent_once",),
    ),
    Mutant(
        "groups that the compiler reorders count as pairs",
        COSTS,
        r"(?:, device_ids=\([^{]*\))?",
        "",
        ("tests/plans/test_costs.py::test_groups_of_a_collective",),
    ),
    Mutant(
        "the most that is expected adds seconds that overlap",
        "fiberjax/plans/plan.py",
        "model / sum(seconds), model / max(seconds)",
        "model / sum(seconds), model / sum(seconds[:2])",
        (f"{OF_OVERLAP}::test_utilisation_lies_between_all_in_turn_and_all_at_once",),
    ),
    Mutant(
        "gradients are added over replicas in every micro-batch",
        "fiberjax/train/update.py",
        'if device_mesh.shape["data"] > 1:',
        "if False:",
        (f"{REPLICAS}::test_gradients_go_from_replica_to_replica_once",),
    ),
    Mutant(
        "one replica's gradient is taken for the sum",
        "fiberjax/train/forward.py",
        "x.sum(0), sharding)",
        "x[0], sharding)",
        (f"{REPLICAS}::test_micro_batches_of_replicas_are_one_update_of_one_device",),
    ),
)
