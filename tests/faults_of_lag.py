"""Deliberate faults of rollouts of an earlier policy; see `mutants`."""

from faults_of_mathematics import Mutant

TRAINER = "fiberjax/run/trainer.py"
LOOP = "fiberjax/run/loop.py"
AHEAD = "tests/run/test_ahead.py"
RESUMED = f"{AHEAD}::test_an_interrupted_run_resumes_bitwise"

FAULTS = (
    Mutant(
        "a lag is never above 1",
        TRAINER,
        "min(iteration + lag, iterations - 1)",
        "min(iteration + min(lag, 1), iterations - 1)",
        (f"{AHEAD}::test_each_batch_is_of_the_policy_of_so_many_iterations_ago",),
    ),
    Mutant(
        "what is sampled late is by the policy that it says",
        TRAINER,
        "begun = self._draw(params, stream, late, version=iteration, score=False)",
        "begun = self._draw(params, stream, late, version=late, score=False)",
        (f"{AHEAD}::test_each_batch_is_of_the_policy_of_so_many_iterations_ago",),
    ),
    Mutant(
        "a checkpoint holds the next batch alone",
        LOOP,
        "interrupts.in_time()\n"
        "                    save(iteration + 1, begun.to_host(experiment), trainer.ahead)",
        "interrupts.in_time()\n"
        "                    save(iteration + 1, begun.to_host(experiment), trainer.ahead[:1])",
        (RESUMED,),
    ),
    Mutant(
        "an iteration that is given up leaves what waited behind",
        LOOP,
        '{"stream": undrawn}, waiting)',
        '{"stream": undrawn}, ())',
        (f"{AHEAD}::test_an_iteration_that_is_given_up_keeps_what_waits",),
    ),
    Mutant(
        "kept rollouts are of the policy before them",
        "fiberjax/run/keeping.py",
        "np.full(len(rows), trained.version, np.int32)",
        "np.full(len(rows), iteration - 1, np.int32)",
        (RESUMED,),
    ),
    Mutant(
        "the behaviour's effective sample size is the whole",
        "fiberjax/run/measured.py",
        "(ratio**2).sum(axis=1)",
        "ratio.sum(axis=1)",
        (f"{AHEAD}::test_the_behaviour_s_effective_sample_size_is_kish_s",),
    ),
    Mutant(
        "updates wait for the rewards of what is sampled late",
        TRAINER,
        "        self.ahead = self.ahead[1:]\n",
        "        self.ahead = self.ahead[1:] + (() if begun is None else (begun()[0],))\n"
        "        begun = None\n",
        (f"{AHEAD}::test_completions_are_rewarded_while_the_updates_run",),
    ),
    Mutant(
        "a lag needs no correction",
        "fiberjax/train/checks.py",
        'if rollout.lag and training.mismatch == "none"',
        'if rollout.devices and training.mismatch == "none"',
        (f"{AHEAD}::test_what_does_not_go_together_is_refused",),
    ),
)
