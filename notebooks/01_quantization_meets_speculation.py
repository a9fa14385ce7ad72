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
# # Does speculation still pay once the target is quantized?
#
# > Three factors, each measured by itself, and whether together they explain the speed-up.
#
# **Question.** Quantizing a model makes its one-token step cheap; speculative decoding makes a
# step emit several tokens. Do the two gains multiply, and if not, which factor is to blame?
#
# **Data.** The study `compat-zoo`, recorded with the models that ship with the package, their
# target in five formats and once more rotated and rounded by GPTQ; the first cell says device,
# date, prompts and versions. Nothing is measured here but in the one cell that
# says so. To record it on your machine: `hspec study compat`.
#
# **Words.** `T_t` is the *target's* own step, one token. An EAGLE-2 *head* makes `d` passes of
# `T_d` each and proposes a tree of `n` tokens (the root counts), which the target verifies in one
# pass, `T(n)`. A round then emits `tau` tokens on average. Everything is in steps of the *same
# format*: a format is compared with itself, not with others.
#
# $$\frac{T_{sd}}{T_t} = \frac{1}{\tau(n, d)}
# \left( d\,\frac{T_d}{T_t} + \frac{T(n)}{T(1)} \right)$$
#
# The left side is time per emitted token with speculation over without; its inverse is the
# speed-up. The split is that of Zhang et al. 2025 (arXiv 2505.22179), who found that at 4 bits
# the second term of the sum is what spoils the gain.

# %%
from IPython.display import Markdown

from hspec_lab import Config, Eagle2, figures_bits, run
from hspec_lab.compat import open_study

study = open_study("compat-zoo")
study

# %% [markdown]
# ## What does it cost to verify n tokens at once?
#
# A pass over n tokens, for every n, in units of the same format's pass over one.

# %%
figures_bits.cost_curves(study.curves(), **study.caption())

# %% [markdown]
# **Reading the figure.** The dashed line is the ideal, verification for free: a pass that only
# waits for weights to arrive takes equally long for 1 and for 64 tokens. Look first at how soon
# each line leaves it, then at its steepness. Formats whose weights must be expanded before they
# are multiplied leave it early, because that work, or the arithmetic behind it, grows with n. Were
# quantization harmless to verification, all lines would lie on each other. The two `w4a16-g128`
# lines ran the same operator on other weights: what is between them is noise.

# %% [markdown]
# ## What does drafting cost?
#
# The head's own layer is not quantized; the output layer that it shares with the target is. Its
# passes and the target's step were timed in turns, on the same prompts.

# %%
figures_bits.drafting_bars(study.drafting(), **study.caption())

# %% [markdown]
# **Reading the figure.** Bars grow with depth because a level is a pass. Look first at the bars of
# one depth: the same drafting is dearer where the target's step is cheaper, in proportion. Bars of
# equal height at all formats would mean that a quantized step is no faster here. Thin lines are
# quartiles over prompts and tree sizes.

# %% [markdown]
# ## Does a quantized target accept less?
#
# Tokens emitted per round, over tree size and depth; the head was trained on the unquantized
# target's features.

# %%
figures_bits.emitted_map(study.cells(), **study.caption())

# %% [markdown]
# **Reading the figure.** Look at the same place of every map: if they agree to a few percent,
# bits hardly move acceptance, and the head needs no training of its own for a quantized target.
# Within a map, deeper trees gain only where they are large enough to go deep. Empty places are
# trees that so few levels cannot fill.

# %% [markdown]
# ## Which tree is the fastest?
#
# The three factors meet: speed-up over plain decoding of the same format, end to end, at every
# tree size with its best depth.

# %%
figures_bits.speedup_over_size(study.cells(), **study.caption())

# %% [markdown]
# **Reading the figure.** Prompts took turns between plain decoding and each tree; points are
# medians over prompts, thin lines quartiles. Look first at the marked optimum of each format: all
# are small trees, of 2 or 4 nodes, because every further row costs here. Below the dashed line
# speculation loses. Were the optima all at one size, a tree tuned for one format would do for the
# others.

# %% [markdown]
# ## Does the equation explain it?
#
# Each cell of the study once more: what the three factors say against what a clock said.

# %%
figures_bits.predicted_against_measured(study.cells(), note=study.caption()["note"])

# %% [markdown]
# **Reading the figure.** On the diagonal the prediction is right. The equation leaves out
# accepting, committing and the interpreter between them, so points lean above it: predicted
# speed-ups are a little too good. Points far off would say that something else decides,
# such as memory that verification shares with drafting. The table has each format's best cell in
# numbers; `rest_ratio` is what was left out, in steps.

# %%
study.best().drop(columns=["top_k", "same_text", "n"]).round(2)

# %% [markdown]
# ## Here and now
#
# The next cell is the only live one: it decodes two prompts plainly and with a small tree, on
# this machine, in a few seconds, and prints the quotient of the two speeds.

# %%
# measured live, not read from the study
asked = {"target": "zoo:target@w4a16-g128", "n_prompts": 2, "max_new_tokens": 48}
plain = run(Config(**asked))
drafted = run(Config(**asked, draft=Eagle2(tree_size=4, depth=1, top_k=8)))
Markdown(f"{drafted.tokens_per_s / plain.tokens_per_s:.2f} times plain decoding, {drafted.label}")

# %%
Markdown("## Take-away\n\n" + study.take_away())
