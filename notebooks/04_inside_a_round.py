# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What happens inside a round?
#
# > One prompt, decoded with HierSpec, every drafted token kept: who proposed it, how likely each
# > model thought it, and which model threw it out.
#
# **Question.** A round ends with a few more tokens of text. What was proposed before that, and
# where do the models disagree?
#
# **Data.** Decoded here and now on this machine's CPU, with the models that ship with the package
# (trained on Python source; no download). `look` keeps every node of every tree. Looking takes
# time, so nothing below is a measurement; the text is bitwise the one that `run` decodes.
#
# **Words.** You know that a transformer, given a text, returns probabilities for the *next* token,
# and that one pass can do so behind many tokens at once. A **proposal** is a tree of tokens that
# might come next. Its **root** is the *pending* token: part of the text already, not yet run
# through the model. Branches are alternatives. One pass **verifies** all of it; the model keeps
# the path on which every token is its own most likely one, and adds one token of its own behind.
# Three levels take turns:
#
# - the **head** (EAGLE-2), one layer, draws a tree of 24 nodes;
# - the **intermediate** model verifies the tree and keeps a path of it, *step* after step, until
#   six tokens stand in a sequence;
# - the **target** verifies that sequence. It decides what becomes text.

# %%
from hspec_lab import Config, Eagle2, Refine, TreeView, look

config = Config(
    target="zoo:target@w4a16-g128",
    draft=Refine("zoo:intermediate@w4a16-g128", Eagle2(tree_size=24, depth=4, top_k=8), at_least=6),
)
trees = look(config, max_new_tokens=64)
view = TreeView(trees)

# %% [markdown]
# ## What does the head propose?
#
# The first tree of round 1, as the intermediate model verifies it.

# %%
view.show(round=1, level="intermediate", step=0)
view.figure()

# %% [markdown]
# **Reading the figure.** The text stands at the left, each column is one token further. The thick
# top row is what the intermediate model makes of it: the nodes it keeps, and at the end (diamond)
# its own token. Below each token stand two probabilities, the head's and the intermediate model's,
# each given everything left of it; `#1` is a model's first choice. Look first along the top row:
# every kept token is `#1` on the right side of its arrow, whatever the head thought. That is what
# makes the text the model's own. A kept token without it would falsify that.

# %% [markdown]
# ## What does the target make of the sequence?
#
# The intermediate model went on with further trees until its sequence was long enough. Here it is
# before the target.

# %%
view.show(round=1)
view.figure()

# %% [markdown]
# **Reading the figure.** Now the numbers are the intermediate model's and the target's. The cross
# marks the first token that the target refuses; above it, on the top row, stands what it says
# instead. All tokens behind the cross are lost, however right they were: they continue another
# text. Look first at the two pairs of probabilities there: the models rank two plausible tokens
# differently, and rarely is either of them sure.

# %% [markdown]
# ## Where did the two models disagree?
#
# Every refusal of the target, with both models' probabilities of both tokens.

# %%
refused = trees.disagreements().query("level == 'target'")
refused.drop(columns=["prompt", "level", "step", "node"]).round(2)

# %% [markdown]
# **Reading the table.** `drafted` is the token that was refused, `chosen` what the target said.
# In each row the target's own probability (`..._p_model`) is higher for `chosen`, the intermediate
# model's (`..._p_draft`) for `drafted`. Compare the two columns `..._p_model`: where they are
# close, the target refused a token that it found almost as good. Greedy decoding has no mercy
# there; at a temperature above 0 it might have passed. `source` names the level that thought of
# the refused token first.

# %% [markdown]
# ## How does the text grow?
#
# Move the slider or press play; the buttons show a round's steps. Beside the tree stands the text
# so far: colours tell who thought of each token, and this round's are outlined.

# %%
view

# %% [markdown]
# **Reading the panel.** Stay on *target* and step through the rounds: long top rows are
# boilerplate, and a cross right behind the root is a round that brought one token. Then change to
# *intermediate 1* and *2*: dashed tokens are the draft, put together tree by tree.

# %% [markdown]
# ## What did it all bring?

# %%
trees.rounds().groupby("level")[["n_steps", "n_proposed", "n_accepted", "n_emitted"]].sum()

# %% [markdown]
# **Reading the table.** Follow the tokens up: `n_proposed` of the intermediate model are nodes of
# the head's trees, its `n_emitted` are what the target was offered (`n_proposed` there), and the
# target's `n_emitted` are the text. Most nodes are thrown out, and that is fine: rows of a tree
# are cheap for a small model. It would not be if the target had to verify the trees itself.

# %%
from IPython.display import Markdown

Markdown("## Take-away\n\n" + trees.take_away())
