"""Looking at rollouts: what is read of them, and what objectives make of them."""
