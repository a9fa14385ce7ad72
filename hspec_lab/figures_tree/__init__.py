"""One proposal drawn as a tree, and the text beside it: who thought of what, and what was kept.

tree_figure(nodes)                      the tree of one proposal, nodes as `trees_folder.NODES`
text_so_far(prompt, tokens, round)      HTML, coloured by who produced each token
disagreement(nodes), title_of(nodes)    the same in words
"""

from hspec_lab.figures_tree.drawing import ACCENT, tree_figure
from hspec_lab.figures_tree.places import drafter_of, height_of
from hspec_lab.figures_tree.words import chance, disagreement, shown, text_so_far, title_of

__all__ = [
    "ACCENT",
    "chance",
    "disagreement",
    "drafter_of",
    "height_of",
    "shown",
    "text_so_far",
    "title_of",
    "tree_figure",
]
