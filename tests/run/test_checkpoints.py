"""What a checkpoint keeps of a state that goes on to be trained."""

import jax
import jax.numpy as jnp
import numpy as np

from fiberjax.run.checkpoints import Checkpoints


def test_on_a_cpu_the_state_is_written_when_saving_returns(tmp_path):
    """So that no second state stays in memory while the next update runs."""
    state = {"params": jnp.arange(6.0), "step": jnp.int32(3)}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    with Checkpoints(tmp_path / "run", keep=1) as saved:
        saved.save(3, state, {"note": "third"})
        # Renamed when it is whole.
        assert (tmp_path / "run" / "3").is_dir()
        found = saved.restore(shapes)
    assert found.iteration == 3 and found.host == {"note": "third"}
    np.testing.assert_array_equal(found.state["params"], np.arange(6.0))
