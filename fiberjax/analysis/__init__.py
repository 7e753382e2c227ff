"""Looking at what a run left, and at what objectives make of it.

style            how pictures look, and figures that a notebook shows
runs             run folders as they are found, and which of them differ in their seed alone
warnings         signs of trouble in metrics, each with its cause and remedy
curves           metrics over iterations, seeds as bands; drift against budget
markup           pages that obey no text
words            what runs did, in sentences
report           one page of it all
gate_pictures    gates: what each leaves of a token's gradient
level_pictures   hierarchies: their cells, couplings, levels and budgets
radius_pictures  the radii that classical trust regions guarantee
"""
