"""Looking back at a run: kept rollouts under any gate, token by token; nothing here trains.

foreign          token dumps of other trainers
tokens, why      every token's numbers under a gate, and its chain of gates in words
page, look       one page of a file of rollouts
replay           objectives on identical data; sweep, unfold, reproduce
report           a page of runs
style            how pictures look, and figures that a notebook shows
run_pictures     a run at a glance
token_pictures   a batch of kept rollouts, and one trajectory token by token
gate_pictures    gates: what each leaves of a token's gradient
level_pictures   hierarchies: their cells, couplings, levels and budgets
radius_pictures  the radii that classical trust regions guarantee
"""
