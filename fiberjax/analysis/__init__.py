"""Looking at what a run left, and at what objectives make of it; nothing here trains.

foreign          token dumps of other trainers
tokens, why      every token's numbers under a gate, and its chain of gates in words
page, look       one page of a file of rollouts
replay           objectives on identical data; sweep, unfold, reproduce
runs             run folders as they are found, and which of them differ in their seed alone
warnings         signs of trouble in metrics, each with its cause and remedy
curves           metrics over iterations, seeds as bands; drift against budget
markup           pages that obey no text
words            what runs did, in sentences
report           one page of runs, with all of these
style            how pictures look, and figures that a notebook shows
run_pictures     a run at a glance
token_pictures   a batch of kept rollouts, and one trajectory token by token
gate_pictures    gates: what each leaves of a token's gradient
level_pictures   hierarchies: their cells, couplings, levels and budgets
radius_pictures  the radii that classical trust regions guarantee
"""
