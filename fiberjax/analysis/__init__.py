"""Looking at what a run left, and at what objectives make of it.

style            how pictures look, and figures that a notebook shows
gate_pictures    gates: what each leaves of a token's gradient
level_pictures   hierarchies: their cells, couplings, levels and budgets
radius_pictures  the radii that classical trust regions guarantee
"""
