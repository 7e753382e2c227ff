"""Looking at a run after the fact: its kept rollouts, what objectives make of them, and reports."""
