# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Who writes the text, and where does the time go?
#
# > One prompt, decoded by three models that take turns; then sliders to change the turns.
#
# **Question.** A 4-bit model decodes one token per pass. Can smaller models write most of its
# text for it, without changing a word, and what does that cost?
#
# **Data.** Measured here and now, on this machine's CPU, with the models that ship with the
# package (trained on Python source; no download). The first cell's table says device, date and
# commit.
#
# **Words.** You know `model.generate()`: every new token is one forward pass of the whole
# model. A pass over *several known* tokens costs little more than a pass over one, because
# reading the weights dominates both. Speculative decoding uses that: something cheap **drafts**
# tokens, the **target** model **verifies** them all in one pass and keeps the prefix it agrees
# with. That pass also yields one token of the target's own, so a **round** emits *accepted + 1*
# tokens, and greedy text is what the target alone would have written. There are three levels
# here:
#
# - the **head** (EAGLE-2), a single layer that drafts a *tree* of likely continuations;
# - the **intermediate** model, small, which turns trees into one *sequence*;
# - the **target**, whose text it is. At 4 bits it is cheap on a few tokens and dear on many, so
#   it is handed the short sequence instead of the tree. This is HierSpec.

# %%
from IPython.display import HTML

from hspec_lab import Config, Eagle2, Explorer, Refine, run

config = Config(
    target="zoo:target@w4a16-g128",
    draft=Refine("zoo:intermediate@w4a16-g128", Eagle2(tree_size=6, depth=2, top_k=8), at_least=4),
    n_prompts=1,
)
result = run(config)
result

# %% [markdown]
# ## Which model produced each token?
#
# `run` decodes and stores; asked again, it answers from the store. The text below is the
# target's, letter for letter; the colours say who thought of each token first.

# %%
HTML(result.text_html())

# %% [markdown]
# **Reading the text.** A thin bar opens each round, so the stretch between two bars is what one
# pass of the target bought. Look first for long stretches: repetition and boilerplate. Rounds
# of a single target token are passes that speculation wasted. Hover over a token for its round
# and position.

# %% [markdown]
# ## Where does a round spend its time?
#
# The same prompt decoded plainly (`ar`, autoregressive) is the yardstick.

# %%
plain = run(Config(target=config.target, n_prompts=1))
explorer = Explorer(result.store, measure=run, config=config)
explorer.figure()

# %% [markdown]
# **Reading the figure.** The bars are time per *emitted* token: a round's time divided by the
# tokens it emitted. Each configuration has two: **measured** just now, on this prompt, and
# **predicted** from recordings that ship with the package, over 29 texts on the machine where they
# were made. Look first at the dark blue part, the target's pass: it shrinks by the tokens emitted
# per round and grows by what verifying several tokens costs. Everything else is the price of
# drafting. Speculation pays where hierspec's bar is shorter than ar's of the same kind; where it
# is longer, the drafts are too dear or too wrong.

# %% [markdown]
# ## What if?
#
# Drag a slider: all figures follow at once. They are not run but *replayed*: a recording says what
# the drafter would have proposed at every place of a text, so that tokens per round are known for
# every size, and each stage's time was measured. *Measure* runs the configuration for real, in a
# process of its own; *Find best* searches all recorded sizes and formats; *Pin* keeps a
# configuration for comparison; *Copy as code* gives what you see as a `Config`.

# %%
explorer

# %% [markdown]
# **Reading the panel.** Time per emitted token first; then the speed-up over `ar` of the same
# format by tree size, each format at its best depth and length, your setting as a ring; what a pass
# over n tokens costs, with the n that you verify marked; tokens per round over tree size and depth
# (click a cell); and how far predictions were off for the runs in your store. Try a larger tree,
# then `fp32`: bits move the cost of verifying, hardly what is accepted. Set the device to `h100`:
# the same drafts under another roofline.

# %% [markdown]
# ## Take-away
#
# Greedy text is the target's own at every setting, only its price moves: on two CPU threads
# (2026-11-21, this prompt, medians of ten turns) the same HierSpec made `fp32` decoding 1.15 times
# as fast and 4-bit decoding 0.66 times, because fewer bits make plain decoding cheap and leave the
# price of drafting. For all prompts, formats and methods: `make demo`.
