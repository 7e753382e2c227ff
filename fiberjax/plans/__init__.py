"""Plans of pods, before a chip is rented: compiled for real TPU slices on a CPU, and read.

    topologies     the slices that exist, and their devices to compile for
    hlo, costs     a compiled program's text, and what it costs
    programs       the programs of a run: what is compiled, and what it needs
    plan           all of them on a slice: whether it fits, and what to change

Nothing is imported here: `topologies.compile_environment` must run before jax is imported.
"""
