"""The transformer equals transformers' own, a tree its paths, and a commit a second reading."""

import json

import pytest
import torch
from tiny import FAMILIES, make_head, make_model

from hspec_lab.config import CPU_FORMATS
from hspec_lab.model import Checkpoint, EagleHead, Transformer
from hspec_lab.tree import from_parents

V = 48
TREE = from_parents([3, 7, 9, 1, 4, 4, 11, 2], [-1, 0, 0, 1, 1, 2, 3, 6])


def load(folder, format="fp32", **options):
    return Transformer(Checkpoint(folder), format, **options)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose sizes every format takes."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": V}
    return make_model(tmp_path_factory.mktemp("wide") / "m", scale=0.1, **sizes)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path / family, **FAMILIES[family])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, V, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    model = load(folder)
    cache = model.new_cache(40)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
        # in two pieces: an empty cache and a filled one take different masks
        features = [model.read(ids[:23], cache), model.forward(ids[23:], cache)]
        logits = model.logits(torch.cat(features))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("row_invariant", [False, True])
def test_a_tree_forward_equals_the_forwards_of_its_paths(family, row_invariant, tmp_path):
    model = load(make_model(tmp_path / "m", **FAMILIES[family]), row_invariant=row_invariant)
    prompt = [5, 9, 30, 2, 17]
    cache = model.new_cache(64)
    model.read(prompt, cache)
    features = model.forward(TREE.tokens, cache, TREE)
    for node in range(len(TREE)):
        path = TREE.path(node)
        alone = model.new_cache(64)
        model.read(prompt, alone)
        expected = model.forward([TREE.tokens[i] for i in path], alone)[-1]
        torch.testing.assert_close(features[node], expected, rtol=0, atol=1e-5)


def test_committing_a_path_equals_reading_it_again(tmp_path):
    model = load(make_model(tmp_path / "m"))
    prompt, path = [5, 9, 30, 2, 17], [0, 1, 3, 6]
    cache = model.new_cache(64)
    model.read(prompt, cache)
    model.forward(TREE.tokens, cache, TREE)
    cache.commit(path)
    fresh = model.new_cache(64)
    model.read(prompt + [TREE.tokens[i] for i in path], fresh)
    assert cache.kv_len == fresh.kv_len == 9
    torch.testing.assert_close(cache.storage[:, :9], fresh.storage[:, :9], rtol=0, atol=1e-5)
    ours, theirs = model.forward([8], cache), model.forward([8], fresh)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_truncation_forgets_what_came_after(tmp_path):
    model = load(make_model(tmp_path / "m"))
    cache = model.new_cache(64)
    model.read([5, 9, 30, 2, 17, 40, 41], cache)
    cache.truncate(4)
    fresh = model.new_cache(64)
    model.read([5, 9, 30, 2], fresh)
    torch.testing.assert_close(
        model.forward([1, 2], cache), model.forward([1, 2], fresh), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("format", CPU_FORMATS)
def test_a_loud_neighbour_changes_no_other_row(format, wide):
    model = load(wide, format)
    # a loud token: its embedding is a thousand times larger than the others'
    model.embedding[40] *= 1000
    outputs = []
    for neighbour in (12, 40):
        cache = model.new_cache(16)
        model.read([5, 9, 30], cache)
        tree = from_parents([3, 7, neighbour, 8], [-1, 0, 0, 1])
        outputs.append(model.logits(model.forward(tree.tokens, cache, tree))[[0, 1, 3]])
    assert torch.equal(*outputs)


@pytest.mark.parametrize("format", CPU_FORMATS)
@pytest.mark.parametrize("n", [2, 7, 24])
def test_row_invariant_mode_gives_the_bits_of_single_rows(format, n, wide):
    model = load(wide, format, row_invariant=True)
    tokens = torch.randint(0, V, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    parents = [-1, *(j // 2 for j in range(n - 1))]
    tree = from_parents(tokens, parents)
    cache = model.new_cache(64)
    model.read([5, 9, 30, 2], cache)
    together = model.logits(model.forward(tree.tokens, cache, tree))
    for node in range(n):
        alone = model.new_cache(64)
        model.read([5, 9, 30, 2], alone)
        for i in tree.path(node):
            logits = model.logits(model.forward([tokens[i]], alone))
            alone.commit([0])
        assert torch.equal(together[node], logits[0])


def test_reading_a_long_prompt_in_chunks_changes_nothing(tmp_path, monkeypatch):
    from hspec_lab.model import transformer

    model = load(make_model(tmp_path / "m"))
    ids = torch.randint(0, V, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = model.read(ids, model.new_cache(64))
    monkeypatch.setattr(transformer, "PREFILL_CHUNK", 16)
    torch.testing.assert_close(model.read(ids, model.new_cache(64)), whole, rtol=0, atol=1e-5)


def test_a_head_of_another_size_is_refused(tmp_path):
    model = make_model(tmp_path / "m")
    other = make_model(tmp_path / "o", hidden_size=64)
    head = make_head(tmp_path / "h", other)
    with pytest.raises(ValueError, match="hidden size 64.*has 32"):
        EagleHead(Checkpoint(head), "fp32", load(model))


def test_more_tokens_than_the_cache_holds_are_refused(tmp_path):
    model = load(make_model(tmp_path / "m"))
    with pytest.raises(ValueError, match="the cache holds 4 tokens; 0 are stored and 5 more"):
        model.forward([1, 2, 3, 4, 5], model.new_cache(4))


def test_nan_logits_are_refused(tmp_path):
    model = load(make_model(tmp_path / "m"))
    with pytest.raises(ValueError, match="m@fp32: NaN in the logits of 1 of 2 rows"):
        features = torch.zeros(2, 32)
        features[1, 3] = torch.nan
        model.logits(features)


class TestCheckpointsThatAreRefused:
    def test_missing_folder(self, tmp_path):
        with pytest.raises(ValueError, match="no such folder"):
            Checkpoint(tmp_path / "nothing")

    def test_missing_config(self, tmp_path):
        with pytest.raises(ValueError, match="no config.json"):
            Checkpoint(tmp_path)

    def test_truncated_weights(self, tmp_path):
        path = make_model(tmp_path / "m") / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match="truncated or not safetensors"):
            Checkpoint(tmp_path / "m")

    def test_pickle(self, tmp_path):
        folder = make_model(tmp_path / "m")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match="pytorch_model.bin, a pickle"):
            Checkpoint(folder)

    def test_shard_that_the_index_names_is_missing(self, tmp_path):
        folder = make_model(tmp_path / "m")
        index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is missing"):
            Checkpoint(folder)

    @pytest.mark.parametrize(
        "fields, message",
        [
            pytest.param(
                {"architectures": ["GPT2LMHeadModel"]},
                "GPT2LMHeadModel is not supported; supported: LlamaForCausalLM, Mistral",
                id="architecture",
            ),
            pytest.param(
                {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
                "RoPE variant 'dynamic' is not supported; supported: default",
                id="rope",
            ),
            pytest.param(
                {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported", id="activation"
            ),
            pytest.param({"hidden_size": None}, "hidden_size must be a whole number", id="missing"),
            pytest.param({"hidden_size": "128"}, "hidden_size must be a whole number", id="text"),
            pytest.param({"num_attention_heads": 0}, "num_attention_heads must be", id="no-heads"),
            pytest.param({"rope_scaling": [1]}, "rope_scaling must be an object", id="rope-list"),
            pytest.param(
                {"rope_scaling": {"rope_type": "linear"}}, "needs a factor", id="rope-no-factor"
            ),
            pytest.param({"eos_token_id": "3"}, "eos_token_id must be token ids", id="eos"),
            pytest.param(
                {"quantization_config": {"quant_method": "gptq"}},
                r"quantized already \(gptq\)",
                id="quantized-already",
            ),
        ],
    )
    def test_config_that_is_not_supported(self, fields, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            make_model(tmp_path / "m")
            path = tmp_path / "m" / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | fields))
            Checkpoint(tmp_path / "m")

    def test_tensor_of_another_shape(self, tmp_path):
        folder = make_model(tmp_path / "m")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
        with pytest.raises(ValueError, match=r"embed_tokens.weight is \[48, 32\].*says \[50, 32\]"):
            load(folder)

    def test_missing_tensor(self, tmp_path):
        folder = make_model(tmp_path / "m")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        with pytest.raises(ValueError, match="layers.2.* is missing"):
            load(folder)

    @pytest.mark.parametrize("text", ["[]", "{", '{"architectures": []}'])
    def test_config_that_is_no_config(self, text, tmp_path):
        (make_model(tmp_path / "m") / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json|none named"):
            Checkpoint(tmp_path / "m")

    @pytest.mark.parametrize("index", [{}, [], {"weight_map": {"a": None}}, {"weight_map": []}])
    def test_index_that_is_no_index(self, index, tmp_path):
        folder = make_model(tmp_path / "m")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="index.json"):
            Checkpoint(folder)

    @pytest.mark.parametrize(
        "family, lost",
        [
            ("llama", "model.layers.0.input_layernorm.weight"),
            ("llama", "model.layers.1.post_attention_layernorm.weight"),
            ("qwen2", "model.layers.0.self_attn.k_proj.bias"),
            ("qwen3", "model.layers.0.self_attn.q_norm.weight"),
        ],
    )
    def test_a_norm_or_bias_that_is_missing_is_not_left_out_silently(self, family, lost, tmp_path):
        from safetensors.torch import load_file, save_file

        folder = make_model(tmp_path / "m", **FAMILIES[family])
        tensors = load_file(folder / "model.safetensors")
        del tensors[lost]
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(ValueError, match=f"{lost} is missing"):
            load(folder)

    def test_a_bias_that_the_config_does_not_announce(self, tmp_path):
        from safetensors.torch import load_file, save_file

        folder = make_model(tmp_path / "m")
        extra = {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
        tensors = load_file(folder / "model.safetensors") | extra
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(ValueError, match="q_proj.bias is there, but config.json says no bias"):
            load(folder)
