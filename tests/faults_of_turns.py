"""Deliberate faults of episodes with several turns; see `mutants.py`."""

from faults_of_mathematics import Mutant

TURNS = "tests/train/test_turns.py"
ENVIRONMENTS = "tests/tasks/test_environments.py"

FAULTS = (
    Mutant(
        "what others say is the policy's",
        "fiberjax/train/turns.py",
        "real[row, used[row] : used[row] + len(ids)] = True",
        "real[row, used[row] : used[row] + len(ids)] = mask[row, used[row]] = True",
        (f"{TURNS}::test_rows_are_one_sequence_of_turns_and_replies",),
    ),
    Mutant(
        "a turn that was cut off is answered",
        "fiberjax/train/turns.py",
        "ended = going[drawn.finished]",
        "ended = going",
        (f"{TURNS}::test_rows_are_one_sequence_of_turns_and_replies",),
    ),
    Mutant(
        "an environment that failed is not counted",
        "fiberjax/train/turns.py",
        "                failed[row] = True\n",
        "                pass\n",
        (f"{TURNS}::test_an_environment_that_fails_ends_the_episode_and_is_counted",),
    ),
    Mutant(
        "an environment that failed is told every time",
        "fiberjax/run/watching.py",
        '            self._told.add("turns/failed")\n',
        "",
        ("tests/run/test_watching.py::test_an_environment_that_fails_is_told_once",),
    ),
    Mutant(
        "an environment of a plugin runs in the run itself",
        "fiberjax/tasks/environments.py",
        'for name in plugin.tables["ENVIRONMENTS"]:',
        "for name in ():",
        (f"{ENVIRONMENTS}::test_environments_of_plugins_run_in_workers",),
    ),
    Mutant(
        "a reply may be anything",
        "fiberjax/tasks/rewards/worker.py",
        'return {"values": [reply_of(function(*case)) for case in cases]}',
        'return {"values": [function(*case) for case in cases]}',
        (f"{ENVIRONMENTS}::test_what_an_environment_does_wrong_is_the_end_of_one_episode",),
    ),
    Mutant(
        "a turn leaves a gap behind the one before",
        "fiberjax/train/turns.py",
        "        used[going] += drawn.length\n",
        "        used[going] += most\n",
        (f"{TURNS}::test_rows_are_one_sequence_of_turns_and_replies",),
    ),
    Mutant(
        "every turn is drawn alike",
        "fiberjax/seeds.py",
        "return stream + STREAMS * turn",
        "return stream",
        (f"{TURNS}::test_sampler_and_trainer_agree_on_every_turn",),
    ),
    Mutant(
        "processes draw as many turns as they have themselves",
        "fiberjax/train/rollout.py",
        "num_parts = int(mesh.gather(self.mesh, parts).max())",
        "num_parts = int(parts.max())",
        (f"{TURNS}::test_a_process_whose_episodes_are_over_still_draws_with_the_others",),
    ),
    Mutant(
        "turns are other trajectories'",
        "fiberjax/train/minibatches.py",
        "np.repeat(rows, turns)",
        "np.tile(rows, turns)",
        (f"{TURNS}::test_cells_are_turns_of_trajectories",),
    ),
    Mutant(
        "cells of turns are counted over all shards",
        "fiberjax/parallel/shardings.py",
        "np.where(ids < size, ids % held, held)",
        "np.where(ids < size, ids, held)",
        (f"{TURNS}::test_packed_and_on_a_mesh_turns_are_what_they_are_in_rows",),
    ),
    Mutant(
        "packed, turns are taken for trajectories",
        "fiberjax/train/packing.py",
        "cell: Any = batch.layout.cell_id",
        "cell: Any = None",
        (f"{TURNS}::test_packed_and_on_a_mesh_turns_are_what_they_are_in_rows",),
    ),
    Mutant(
        "groups that are kept lose their turns",
        "fiberjax/train/resample.py",
        "        turn=turn,\n",
        "        turn=np.zeros_like(turn),\n",
        (f"{TURNS}::test_groups_that_are_kept_keep_their_turns",),
    ),
    Mutant(
        "replies are taught",
        "fiberjax/tasks/environments.py",
        "[True] + [False] * len(answer)",
        "[True] + [True] * len(answer)",
        (f"{ENVIRONMENTS}::test_a_solution_is_taught_with_the_replies_and_without_their_loss",),
    ),
    Mutant(
        "a flaw falls on what others say",
        "fiberjax/tasks/supervised.py",
        "np.flatnonzero(own & (solution != eos_id))",
        "np.arange(len(own))",
        (f"{ENVIRONMENTS}::test_the_warm_start_never_teaches_what_others_say",),
    ),
    Mutant(
        "the end of a turn is written twice",
        "fiberjax/tasks/environments.py",
        "return ids[1:] if ids[:1] == [after] else ids",
        "return ids",
        (f"{ENVIRONMENTS}::test_a_chat_ends_the_turn_and_begins_the_next",),
    ),
    Mutant(
        "the window of a reply is not kept",
        "fiberjax/tasks/environments.py",
        "fits = len(encode(held[:middle])) <= self.reply",
        "fits = True",
        (f"{TURNS}::test_a_reply_that_does_not_fit_is_cut_and_counted",),
    ),
    Mutant(
        "a trajectory takes the mean over its turns' tokens",
        "fiberjax/gates/bundle.py",
        "    total = layout.pushforward(drift, k)\n",
        "    total = layout.pushforward(drift * layout.sizes[k][:, None], k)\n",
        (
            "tests/gates/test_turn_level.py"
            "::test_a_trajectory_takes_the_mean_over_its_turns_and_residuals_cancel",
        ),
    ),
)
