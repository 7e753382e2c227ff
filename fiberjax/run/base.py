"""The base of a run with adapters: made anew by every process, and checked to be the one it was.

Checkpoints hold the adapters alone, and a digest of what they adapt: a published folder that has
changed since, or another warm start, is refused where it would quietly be another policy.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fiberjax.experiment import Experiment
from fiberjax.policy import lora
from fiberjax.run.warm_start import starting_params


class Base(NamedTuple):
    """What adapters adapt.

    Attributes:
      params: the parameters that the run started from, on its mesh, in `config.lora.base_dtype`;
        None where all parameters are trained.
      digest: of them; "" without adapters.
    """

    params: Any
    digest: str

    def check(self, host: Mapping[str, Any]) -> None:
        """Refuses a checkpoint whose adapters adapt something else.

        Args:
          host: what the checkpoint holds beside the state.

        Raises:
          ValueError: both digests.
        """
        saved = host.get("base", "")
        if saved != self.digest:
            raise ValueError(
                "the adapters of this run were trained on other parameters than it starts from "
                "now: config.model.folder holds another model, or the warm start is another one "
                f"(digest {saved} there, {self.digest} here)"
            )


def make_base(experiment: Experiment) -> Base:
    """The base of an experiment, on its mesh."""
    if experiment.lora is None:
        return Base(None, "")
    params = experiment.base(starting_params(experiment))
    return Base(params, lora.digest(params))
