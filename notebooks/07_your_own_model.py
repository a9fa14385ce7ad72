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
# # How do I try this with my own model?
#
# > A folder in Hugging Face's layout is all it takes; here is one, made on the spot.
#
# **Question.** You have a checkpoint and a smaller one with the same tokenizer. Which steps lead
# from the two folders to the draft length that is fastest on your machine, and how far can the
# prediction be trusted?
#
# **Data.** Two toy models, trained in the first cell for some seconds on text that ships with the
# package: a target of four layers and a draft model of one. Everything is measured here and now, on
# one CPU thread. What they write is no use to anybody; every step is the one you would take.
#
# **Words.** A *reference* is `folder@format`: where the weights lie, and how they are stored while
# they run. A *chain* is a small model that drafts tokens in a row. A *trace* records what it would
# propose at every position of the target's text; *stages* are what each part of a round costs.

# %%
from IPython.display import Markdown

from hspec_lab import Chain, Config, figures_cost, figures_predict, run
from hspec_lab.train import toy

place = toy.fresh_folder()
target = toy.make_checkpoint(place / "target", hidden=128, layers=4, n_steps=120)
draft = toy.make_checkpoint(
    place / "draft", hidden=64, layers=1, tokenizer=target, n_steps=200, seed=1
)
toy.files_of(target, draft)

# %% [markdown]
# **With yours.** Skip that cell and name your folders. `config.json` must be of a Llama, Mistral,
# Qwen2 or Qwen3; weights are safetensors, in one file or in shards; both need the same tokenizer.
#
# ## Does it decode?
#
# Plainly, then with a chain of three tokens; both at 4 bits in groups of 32.

# %%
fast, small = f"{target}@w4a16-g32", f"{draft}@w4a16-g32"
same = {"prompts": toy.prompts(4), "max_new_tokens": 64, "threads": 1}
plain = run(Config(target=fast, **same))
drafted = run(Config(target=fast, draft=Chain(small, 3), **same))
drafted

# %%
drafted.figure()

# %% [markdown]
# **Reading the figure.** Time per emitted token by phase. Look first at *draft*: the chain's passes
# against the target's one, *verify_target*. `mismatches: 0` in the table above says that the text
# is the one plain decoding writes. Were *draft* the longer part, a smaller draft model or a
# shorter chain would be due.
#
# ## Which format?
#
# A format in the reference rounds to nearest when the model is loaded. With `+gptq` and its like
# an algorithm looks at the weights first: made once, then found by its name.

# %%
from hspec_lab.quantize import quantize

made = quantize(f"{fast}+gptq")
toy.files_of(made)[["file", "bytes"]]

# %% [markdown]
# ## What does a pass cost?

# %%
from hspec_lab.measure import Plan, measure_costs

rows, formats = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32), (f"{target}@fp32", fast)
plan = Plan(models=formats, contexts=(128,), rows=rows, repeats=9, threads=1)
costs = measure_costs(plan, place / "costs")
figures_cost.cost_curves(costs, note="one CPU thread, toy model, here and now")

# %% [markdown]
# **Reading the figure.** The dashed line is verification for free. Look first at the diamonds: as
# many tokens may a draft have before verifying it costs half a pass more. On a machine that does
# other things, points jump and some are marked unstable; measure again when it is quiet. A line
# that falls would say that the clock was wrong.
#
# ## How long should the chain be?
#
# Record what the chain would propose, measure the stages in real rounds, multiply; then run some
# lengths and see.

# %%
from hspec_lab.cost import stage_costs
from hspec_lab.measure_rounds import RoundsPlan, measure_rounds
from hspec_lab.record import record

chain, texts = Chain(small, 6), {"prompts": same["prompts"], "max_new_tokens": 64, "threads": 1}
trace = record(Config(target=fast, draft=chain, **same), place / "trace")
measure_rounds(RoundsPlan(targets=(fast,), drafts=(chain,), seconds=4, **texts), place / "stages")
stages = stage_costs(place / "stages", fast, chain)

# %%
from hspec_lab.chain_lengths import try_lengths

told = try_lengths(Config(target=fast, draft=chain, **same), (1, 2, 3, 4, 6), trace, stages)
shown = ["draft_len", "mean_emitted", "mean_emitted_measured", "ar_steps", "ar_steps_measured"]
told[shown].round(2)

# %%
figures_predict.predicted_vs_measured(told, **told.attrs)

# %% [markdown]
# **Reading the figure.** One point a length, with 95 % intervals over prompts. In the table tokens
# per round agree to the last digit, because for greedy text replay is exact; times scatter, because
# a toy's step takes half a millisecond and the machine has other work. Lengths took turns with
# plain decoding, so that a slow minute slows all of them. Look first at whether the lowest point is
# also the leftmost: then the prediction picked the right length. Below 1 a chain pays; a toy's
# hardly does: its one layer is a quarter of the target's work, and right at best half of the time.
#
# ## What can go wrong?
#
# Whatever is wrong is said in one line, before any weight is read.

# %%
stranger = toy.make_checkpoint(place / "stranger", hidden=64, layers=1, vocab=300, n_steps=0)
strangers = Config(target=fast, draft=Chain(f"{stranger}@fp32", 3), **same)
too_long = Config(target=fast, prompts=("word " * 2000,), threads=1)
wrong = (
    toy.refusal(run, strangers, progress=toy.silent),
    toy.refusal(run, too_long, progress=toy.silent),
    toy.refusal(run, Config(target=f"{place / 'nowhere'}@fp32"), progress=toy.silent),
    toy.refusal(run, Config(target=f"{draft}@w4a16-g128"), progress=toy.silent),
    toy.refusal(Config, target=f"{target}@w5a16"),
)
Markdown("- `" + "`\n- `".join(wrong) + "`")

# %% [markdown]
# ## And on a GPU, with a real one?
#
# The same lines with `device="cuda"` and other references; where no folder with weights is at hand,
# `shape:llama-3-8b@w4a16-g128` is a real shape with made-up weights, for times alone.
#
#     from hspec_lab import Config, Eagle2, Refine, run
#
#     config = Config(
#         target="/models/Llama-3-70B-Instruct@w4a16-g128",
#         draft=Refine("/models/Llama-3-8B-Instruct@w4a16-g128", Eagle2(30, 3, 10), at_least=6),
#         prompts=("Once upon a time",), device="cuda",
#     )
#     run(config)
#
# An EAGLE-2 head lies beside its model, in a folder of the same name with `-eagle2` behind it. In a
# terminal the steps are `hspec run`, `hspec quantize`, `hspec measure`, `hspec record`, `hspec
# predict` and `hspec best --confirm`.

# %%
best = told.loc[told["ar_steps_measured"].idxmin()]
said = f"""## Take-away

On this machine, today, the toy's best chain has length **{best["draft_len"]}** and decodes
**{best["speedup_measured"]:.2f} times** as fast as the same 4-bit target alone, where
{best["speedup"]:.2f} was predicted from a trace and stages measured before it ran."""
Markdown(said)
