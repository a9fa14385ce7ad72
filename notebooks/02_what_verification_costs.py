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
# # What does it cost to verify n tokens at once?
#
# > One curve decides how large a draft may be; bits bend it early.
#
# **Question.** A target that verifies a draft runs one pass over n tokens instead of n passes over
# one. How much longer is that pass, at which n does it begin to hurt, and how does that move with
# the bits of the weights and with the device?
#
# **Data.** The curves `zoo` and `zoo-cold`, measured with the models that ship with the package on
# the CPU that the first cell names; and devices we do not own, computed from their data sheets.
# Every title says *measured* or *roofline*. Nothing is measured here. To measure your machine:
# `hspec measure`.
#
# **Words.** `T(n)` is the time of a pass over n tokens. A pass reads all weights once, whatever n
# is, and multiplies n times as much. As long as it waits for weights, more tokens are free. The
# **knee** is where that ends; the **verify width** puts a number on it: the last n with
# `T(n) <= 1.5 T(1)`. A **roofline** is the best a device can do: the longest of reading (bytes over
# bandwidth), multiplying (operations over peak) and unpacking packed weights. A **plateau** is a
# stretch of n at one price, because kernels work in tiles of rows.

# %%
from IPython.display import Markdown

from hspec_lab import figures_cost, figures_width, verify_width

warm, cold = verify_width.open_curves("zoo"), verify_width.open_curves("zoo-cold")
warm.caption()

# %% [markdown]
# ## How does T(n) grow?
#
# In passes over one token, so that formats of different speed lie beside each other.

# %%
figures_cost.cost_curves(warm.table, **warm.caption())

# %% [markdown]
# **Reading the figure.** The dashed line is verification for free. Look first at the diamonds, the
# knees, then at the slopes behind them: at 4 bits a pass over one token is so cheap that the work
# that grows with n shows from the second token on. Curves on top of each other would say that bits
# do not matter for verifying. The table has the same in numbers. `gb_per_s` is what a one-token
# pass reads: at fp32 about half of what this memory gives, at 4 bits far less, so there something
# else than memory decides. The cold rows read other memory before each pass.

# %%
verify_width.summaries(warm, cold).round(2)

# %% [markdown]
# ## What holds a pass back?
#
# The roof of this device: a slope, where memory decides, and a flat part, where arithmetic does.
# Each point is one measured pass with cold caches.

# %%
reached = verify_width.attained(cold)
figures_width.device_roofline(reached, cold.device, **reached.attrs)

# %% [markdown]
# **Reading the figure.** More tokens per pass do more operations for each byte read, so a curve
# runs to the right; as long as verification is free, it climbs as steeply as the roof's slope. Look
# first at how far below the roof it stays. At fp32 the curve climbs along the slope and bends under
# the flat part: memory first, arithmetic then. At 4 bits it starts further right, as there are
# fewer bytes, and lower under its roof: expanding weights and starting operators costs time that
# neither roof counts. A point above the roof would say that the device file is wrong.

# %%
verify_width.left_by_roofline(warm).round(3)

# %% [markdown]
# **Reading the table.** What a roofline leaves unexplained of the warm curves once ten numbers, its
# shares of the peaks and the price of a launch, are fitted to this device: about a percent of a
# pass's time, a tenth at worst. That speaks for its form, not for the shares that are assumed for a
# device nobody measured.

# %% [markdown]
# ## And on a GPU?
#
# The same curve for a model of 8 billion parameters on an H100, from its data sheet. No GPU was
# measured: shares of the peaks are assumed, tiles and instructions are those of our compiled code.

# %%
gpu = verify_width.modelled("h100", "shape:llama-3-8b")
figures_cost.cost_curves(gpu, **gpu.attrs)

# %% [markdown]
# **Reading the figure.** Steps instead of slopes: kernels take rows in tiles of 16, 32 and 64, and
# a tile costs the same however full it is; a knee at 128 is the end of the curve. Look first at
# where the 4-bit line leaves the floor: from the second tile of 64 rows on, every weight is
# unpacked twice. A measured curve without that step would falsify the count.

# %% [markdown]
# ## How wide may a draft be?
#
# The verify width on six GPUs.

# %%
gpus = ("rtx-3090", "rtx-4090", "a100-80gb", "h100", "h200", "b200")
widths = verify_width.widths(gpus, "shape:llama-3-8b")
figures_width.width_bars(widths, **widths.attrs)

# %% [markdown]
# **Reading the figure.** A bar is the largest draft that costs at most half a pass more. Look
# first at 4 bits with 16-bit rows (`w4a16-g128`): no format is narrower on any of these devices,
# because its weights are read four times as fast and multiplied no faster. Trees of 60 nodes,
# usual in the literature, fit 16 bits everywhere. On a B200 all formats but 16 bits wait for what
# our own code, as compiled, does besides multiplying: it unpacks weights and scales products. Were
# the bars of one device equal, one tree would do for all formats.

# %%
Markdown("## Take-away\n\n" + verify_width.take_away(warm, widths))
