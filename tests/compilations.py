"""What is compiled: counted in a test, and told line by line by a run of several processes.

jax reports a compilation whether or not the persistent cache has the program already.
"""

import contextlib

import jax

EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
    """The names of the functions that are compiled within, in order, as they come."""
    names = []

    def heard(event, duration, **details):
        if event == EVENT:
            names.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


def told(kind, function):
    """The function, with a line before every call that says what was compiled since the last."""

    def telling(*arguments, **options):
        print(f"before {kind}: {len(seen)} compiled: {seen}", flush=True)
        seen.clear()
        return function(*arguments, **options)

    return telling


if __name__ == "__main__":
    from absl import app

    from experiments import train
    from fiberjax.run.trainer import Trainer
    from fiberjax.train.rollout import Sampler

    Trainer.iterate = told("iteration", Trainer.iterate)
    Sampler.begin = told("draw", Sampler.begin)
    end = told("end", lambda: None)

    def main(argv):
        train.main(argv)
        end()

    with compilations() as seen:
        app.run(main, flags_parser=train.parse_flags)
