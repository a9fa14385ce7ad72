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
# # What do the kernels do, and what holds them back?
#
# > Each operation is one file: a definition, a kernel, and what it may cost.
#
# **Question.** A round of speculative decoding on a GPU is a handful of kernels. What does each of
# them compute, how is it known to be right, and is it memory, arithmetic or the unpacking of
# weights that it waits for?
#
# **Data.** The sources in `kernels/`; `docs/kernels.md`, what Triton's compiler made of every
# chosen configuration, without a GPU; data sheets in `profiles/devices`. One kernel runs here, in
# Triton's interpreter on the CPU. **No time of a GPU was measured.** Where there is one:
# `docs/measuring.md`.
#
# **Words.** A *kernel* is a function that many *programs*, blocks of threads, run at once on parts
# of the data. *Triton* is the Python dialect they are written in. The *definition* (`<op>_ref`) is
# plain torch and slow, and says what is right. *Registers* hold a thread's numbers; what does not
# fit is *spilled* to memory, which is slow. *Shared memory* is a program's own. Weights of 4 bits
# are *unpacked*, made into 16-bit numbers, before *tensor cores* multiply them.

# %%
from IPython.display import Markdown

from hspec_lab import figures_kernels, kernel_facts

found = kernel_facts.operations()
Markdown(kernel_facts.as_markdown(found, "operation", "what", "cost"))

# %% [markdown]
# ## What is one kernel?
#
# A short one with a decision in it: greedy acceptance of a tree. First the definition.

# %%
Markdown(kernel_facts.listing("accept_greedy_tree", "accept_greedy_tree_ref"))

# %% [markdown]
# Then the kernel. It is the same walk with all nodes in one program: a level is one reduction
# instead of a loop over nodes, and nothing goes back to the host.

# %%
Markdown(kernel_facts.listing("accept_greedy_tree", "_accept_greedy_tree_kernel"))

# %% [markdown]
# **Reading the listings.** Look first at `mask=` and `other=`: every load names what lies outside.
# `tl.constexpr` arguments are known when it is compiled, so each block size is its own program. A
# tree for which the two give different paths would falsify the kernel, and the next cell looks for
# one: it runs both on the cases that the tests use, in a process of its own.

# %%
tried = kernel_facts.trial("accept_greedy_tree")
tried

# %% [markdown]
# ## What did the compiler make of them?
#
# One point per configuration and GPU.

# %%
compiled = kernel_facts.compiled()
figures_kernels.registers_by_operation(compiled, **compiled.attrs)

# %% [markdown]
# **Reading the figure.** A multiprocessor has 65,536 registers: a program of 128 threads with 128
# registers each runs at most four times on it. Look first at the top: attention, which holds a tile
# of scores, and products of packed weights, as unpacking needs registers. A crossed-out point would
# spill. Below are the kernels of trees and verdicts: small, because they are one launch that no
# host waits for, not because they compute much. The table has the largest of each on an H100.

# %%
kernel_facts.worst(compiled).round(1).head(10)

# %% [markdown]
# ## What does a product wait for?
#
# The largest matrix of a layer of Llama-3-8B on an H100, in 16 and in 4 bits, by counted bytes,
# operations and instructions over the shares of the peaks that are assumed.

# %%
roofs = kernel_facts.ceilings("h100", "shape:llama-3-8b", ("w16a16", "w4a16-g128"))
figures_kernels.product_ceilings(roofs, **roofs.attrs)

# %% [markdown]
# **Reading the figure.** The broad grey line, the longest of the three, is the time. Look first at
# the distance between reading and the next line. At 16 bits it is wide: all 128 rows are free. At 4
# bits reading is nearly four times shorter, multiplying is what it was, and unpacking, once for
# each tile of rows, takes nearly as long as reading from the first row on: the floor ends with the
# tile of 32. A measured time under the grey line would say that a count is wrong; above it lies
# what the kernel loses.

# %%
kernel_facts.one_pass("h100", "shape:llama-3-8b@w4a16-g128", 16).round(2)

# %% [markdown]
# **Reading the table.** A whole pass over 16 tokens, the longest parts first. `launches` is what
# starting kernels costs, assumed: at 4 bits it is a part that one sees, and the reason why a round
# is recorded as CUDA graphs.

# %%
Markdown("## Take-away\n\n" + kernel_facts.take_away(found, tried, compiled))
