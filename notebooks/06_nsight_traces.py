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
# # Where does each microsecond go?
#
# > One recording, looked at whole, round by round, and phase by phase; then handed to other tools.
#
# **Question.** A round of speculative decoding takes some milliseconds. Which model spent them, on
# what, which rounds were slow and why, and what changes when the target has 4 bits?
#
# **Data.** Measured here and now, on this machine's CPU, with the models that ship with the
# package; the first cell's table says device, date and commit. One figure shows a run that ships,
# and says so.
#
# **Words.** You know that a transformer is a stack of layers, each with *attention* and an *mlp*,
# and an *lm_head* at the end. A **span** is a stretch of time with a name, noted by two readings
# of a clock. Spans nest: a **round** holds **phases** (*draft*, *verify_intermediate*,
# *verify_target*, *accept*, *kv_commit*), and a phase holds **modules**. What no phase of a round
# covers is its **gap**. A **timeline** draws spans side by side, a row for each model. A
# **profiler** is a tool that notes such spans for a whole process, down to the **kernels**, the
# programs that a GPU runs; a **trace** is what it writes.

# %%
from dataclasses import replace

from hspec_lab import Config, Eagle2, Refine, TimelineView, breakdown, figures_trace, run_together

draft = Refine("zoo:intermediate@w4a16-g128", Eagle2(tree_size=6, depth=2, top_k=3), at_least=4)
# a second thread would have to be waited for whenever something else runs here
work = {"n_prompts": 8, "max_new_tokens": 64, "threads": 1}
config = Config(target="zoo:target@w4a16-g128", draft=draft, **work)
full, result = run_together([replace(config, target="zoo:target@fp32"), config], modules=True)
result

# %% [markdown]
# ## What happened, when?
#
# Two runs were made above, with a 4-bit target and with an fp32 one; they took turns, prompt by
# prompt, so that they compare. This is the 4-bit one. `modules=True` also times the parts of each
# pass; it is off otherwise, because it costs time itself. Drag a stretch of the picture to look
# closer, scroll to zoom, double-click to return, or walk from round to round. Below the picture
# stands how many spans are in view.

# %%
view = TimelineView(result)
view

# %% [markdown]
# **Reading the timeline.** Time runs to the right. Look first at one round (*next round*): the head
# drafts, the intermediate model verifies, perhaps twice, then the target once, over everything
# they agreed on. *modules* shows what that pass was busy with. Seen from afar, spans narrower
# than a pixel are joined to blocks, coloured by the phase that took most of each; hovering says how
# many spans and how much time. Two models working at the same time would falsify the rule
# that a round is a sequence. The next cell moves the panel to one round and draws that view once
# more, without controls.

# %%
view.show_round(prompt=0, round=3)
view.figure()

# %% [markdown]
# ## What does a round cost, and which model is it?
#
# The same spans as sums over all rounds: per round, per emitted token, and each phase's share. The
# warm-up does not count.

# %%
breakdown.phase_table(result.rounds, result.spans, by_level=True).round(3)

# %%
result.figure()

# %% [markdown]
# **Reading the table and the figure.** `us_per_emitted` is what matters in the end: a phase may
# take longer in every round and still pay, if rounds then emit more. Look first at the longest
# bar. The gap is the time between spans, the interpreter's own; were it above 5 %, the breakdown
# would say too little. `device_us` is a GPU's own clock, absent here.

# %% [markdown]
# ## Which rounds were the slowest, and why?
#
# A straight line per phase says what a round of this size usually takes; what is left is noise.

# %%
from hspec_lab.analysis.rounds import slowest

told = figures_trace.caption(result.timeline())
figures_trace.slowest_rounds(slowest(result.rounds, result.spans, n=5), **told)

# %% [markdown]
# **Reading the figure.** Rounds are sorted by how much longer they took than the average for what
# they emitted. Look at the words: *rejected early* means that drafting was in vain, *longer
# context* and *larger tree* that there was more to do, *noise* that the same work took longer than
# it does elsewhere in this run, as when another process takes the processor.

# %% [markdown]
# ## What do 4 bits change?
#
# The run with the unquantized target beside this one: the same prompts and drafter; phases are
# compared per emitted token, prompts in pairs.

# %%
from hspec_lab.analysis.difference import difference

change = difference((full.rounds, full.spans), (result.rounds, result.spans))
names = ("an fp32 target", "a w4a16-g128 target")
figures_trace.phase_difference(change, names=names, note=told["note"])

# %% [markdown]
# **Reading the figure.** Bars to the left are time saved by 4 bits, thin lines 95 % intervals over
# prompts; a pale bar may be nothing. Look first at *verify_target*, the one phase that the target's
# format touches directly. Drafting is the same work in both runs: where its bar is long and not
# pale, rounds emitted differently, or something disturbed one run and not the other. The intervals
# know prompts; that the runs took turns is what keeps a busy minute out of them.

# %% [markdown]
# ## How far is that from what the machine allows?
#
# A pass must at least read its weights and the stored keys and values once. Divided by the memory's
# bandwidth, that is a limit; the number of operations over the peak of arithmetic is another. Your
# machine's bandwidth is known once `hspec measure` has run there with as many threads, so this
# figure shows a run that ships with the package, on the machine where both were measured.

# %%
from importlib.resources import files

from hspec_lab import Run
from hspec_lab.analysis.limits import limits

shipped = Run(files("hspec_profiles") / "runs/zoo/hierspec")
least = limits(shipped.head, shipped.spans)
figures_trace.limits(least, **figures_trace.caption(shipped.timeline()))

# %% [markdown]
# **Reading the figure.** White marks are limits; hovering over a bar tells passes, bytes and
# launches. A phase at its limit cannot get faster without fewer bytes or fewer passes. One far
# above it spends its time elsewhere: on arithmetic, on expanding 4-bit weights, or in the
# interpreter, which weighs heavily on models as small as these. "No limit known" stands where a
# phase runs no model. Less than its limit would mean that the model was in a cache all along.

# %% [markdown]
# ## How do I look at it in other tools?
#
# The whole timeline in four formats. The same from a shell: `hspec export RUN --to perfetto`.

# %%
from tempfile import mkdtemp

written = view.export(mkdtemp(prefix="hspec-"))
written.drop(columns="path")

# %% [markdown]
# - **Perfetto** (`.perfetto.json`): open [ui.perfetto.dev](https://ui.perfetto.dev) in a browser
#   and drop the file on it; nothing leaves your machine. W and S zoom, A and D move. Arrows lead
#   from a proposal to its verification; accepted tokens and context length are counters.
# - **Nsight Systems** (`.sqlite`): tables as `nsys export` writes them, for scripts that read such
#   files. The window of Nsight Systems itself opens recordings of its own (below).
# - **speedscope** (`.speedscope.json`): drop it on [speedscope.app](https://www.speedscope.app).
# - **Parquet** (a folder): one table each for pandas, DuckDB or R.
#
# On a machine with an NVIDIA GPU, Nsight Systems also records the kernels:
#
# `hspec trace RUN --nsys`
#
# decodes that run's configuration once more, in a fresh process under `nsys profile`, where our
# phases appear as named ranges; the `.nsys-rep` that it leaves opens in Nsight Systems. It also
# says which phase launched which kernels and how long the GPU waited between them. Without `nsys`
# it writes down the exact command and a script to run elsewhere. `hspec analyze TRACE --into RUN`
# then takes the result home; it reads torch.profiler's files too. Does anything get lost on the
# way? Read one back:

# %%
from hspec_lab.trace_in import read_trace

back = read_trace(written.set_index("format").loc["nsys-sqlite", "path"]).tables()
there = breakdown.phase_table(result.rounds, result.spans).set_index("phase")["us_per_round"]
again = breakdown.phase_table(back["rounds"], back["spans"]).set_index("phase")["us_per_round"]
there.to_frame("recorded").assign(read_back=again, difference=(again - there).round(6))

# %% [markdown]
# **Reading the table.** µs of a round. Look at the last column: anything but 0 would mean that an
# export tells another story than the run.

# %%
from IPython.display import Markdown

shares = breakdown.phase_table(result.rounds, result.spans).set_index("phase")["share"]
saved = change.set_index("phase").loc["verify_target"]
others = shares.drop("verify_target")
Markdown(
    "## Take-away\n\nOn this machine, one thread, 4 bits change verify_target by "
    f"{saved['difference']:+.0f} µs per emitted token ({saved['difference_low']:+.0f} to "
    f"{saved['difference_high']:+.0f}), and {others.sum():.0%} of what a round still takes is "
    f"spent elsewhere, on {others.idxmax()} most of all."
)
