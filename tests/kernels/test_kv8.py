"""Keys and values in 8 bits on the device: codes and scales that are written, read and moved."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_runtime import CAPACITY, TINY, Pair, check_stages, steps
from tiny import make_model

from hspec_kernels.rope_and_append import rope_and_append
from hspec_lab.kv import DeviceCache
from hspec_lab.model import Checkpoint
from hspec_lab.model.fused import FusedTransformer
from hspec_lab.quant.kv_bits import rounding_of
from hspec_lab.scheme import parse
from hspec_lab.tree import from_parents

TREE = from_parents([5, 7, 9, 11, 10, 3], [-1, 0, 0, 1, 2, 3])
PATH = [0, 1, 3, 5]  # with a hole behind 1


@pytest.fixture
def make(tmp_path, device):
    folder = make_model(tmp_path / "m", **TINY | {"num_hidden_layers": 2})

    def made(format: str) -> FusedTransformer:
        options = {"device": device, "dtype": torch.float16, "row_invariant": True}
        return FusedTransformer(Checkpoint(folder), format, **options)

    return made


def test_a_cpu_rounds_to_the_kernels_codes_and_scales(device, generator):
    """Largest values are 127 times a power of two, so that every scale is exact."""
    rows = torch.randint(-507, 508, (5, 4, 16), generator=generator) / 4  # quarters: ties too
    rows[..., 2] = 127
    rows[0, 1] = 0
    rows *= 2.0 ** torch.arange(-9, -5)[:, None]
    queries = torch.ones(5, 2, 16)
    qkv = torch.cat([queries, rows], dim=1).flatten(1).half().to(device)
    kv = torch.zeros(9, 4, 16, dtype=torch.int8, device=device)
    scale = torch.zeros(9, 4, dtype=torch.float16, device=device)
    still = torch.ones(16, 8, device=device), torch.zeros(16, 8, device=device)
    depths = torch.arange(5, dtype=torch.int32, device=device)
    kv_len = torch.full((1,), 3, dtype=torch.int32, device=device)
    rope_and_append(qkv, *still, depths, kv, kv_len, kv_scale=scale)
    rounding = rounding_of(parse("w4a16-g128-kv8"), 16)
    codes, scales, _ = rounding.pack(rows)
    assert torch.equal(kv[3:8].cpu(), codes) and torch.equal(scale[3:8].cpu(), scales)
    assert not kv[:3].any() and not kv[8:].any()
    assert torch.equal(rounding.round(rows), kv[3:8].cpu() * scale[3:8, :, None].float().cpu())


def test_logits_are_near_those_of_a_16_bit_cache(make):
    ids, found = list(range(1, 11)), []
    for format in ("w8a16", "w8a16-kv8"):
        model = make(format)
        cache = model.new_cache(32)
        with torch.inference_mode():
            model.read(ids, cache)
            found.append(model.logits(model.forward(TREE.tokens, cache, TREE)))
    assert cache.storage.dtype == torch.int8
    ratio = (found[1] - found[0]).norm() / found[0].norm()
    assert 0 < ratio < 0.03


def test_codes_and_scales_follow_an_accepted_path(make):
    model = make("w8a16-kv8")
    cache, alone = model.new_cache(32), model.new_cache(32)
    with torch.inference_mode():
        model.read([1, 2, 3], cache)
        model.read([1, 2, 3], alone)
        model.forward(TREE.tokens, cache, TREE)
        cache.commit(PATH)
        for node in PATH:
            model.read([TREE.tokens[node]], alone)
    assert cache.kv_len == int(cache.kv_len_on_device) == 7
    assert (cache.kv_scale[:, :7] > 0).all()
    assert torch.equal(cache.storage[:, :7], alone.storage[:, :7])
    assert torch.equal(cache.kv_scale[:, :7], alone.kv_scale[:, :7])


class Kv8Pair(Pair):
    """Models with int8 caches; the head's own stays in 16 bits."""

    def opened(self, folder: Path) -> FusedTransformer:
        options = {"device": self.device, "dtype": torch.float16, "row_invariant": True}
        return FusedTransformer(Checkpoint(folder), "w8a16-kv8", **options)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Kv8Pair(tmp_path_factory.mktemp("models"), device)


def test_rounds_on_the_device_are_those_of_the_hosts_loop(pair, monkeypatch):
    paths, commit, prompt = [], DeviceCache.commit, (5, 7)
    wanted = pair.by_host("eagle2")
    ours = wanted.cache

    def noted(cache, path):
        if cache is ours:
            paths.append(path)
        commit(cache, path)

    monkeypatch.setattr(DeviceCache, "commit", noted)
    theirs = steps(wanted, 2, prompt)
    assert paths[1][-1] >= len(paths[1])  # the second round reads rows that the first has moved
    found = pair.on_device("eagle2")
    assert [step.tokens for step in steps(found, 2, prompt)] == [step.tokens for step in theirs]
    n = found.cache.kv_len
    assert n == wanted.cache.kv_len
    assert torch.equal(found.cache.storage[:, :n], wanted.cache.storage[:, :n])
    assert torch.equal(found.cache.kv_scale[:, :n], wanted.cache.kv_scale[:, :n])


@pytest.mark.slow
def test_stages_with_scales_launch_the_same_every_time_and_wait_for_nothing(pair, monkeypatch):
    check_stages(pair.on_device("eagle2"), monkeypatch)


def test_a_cache_counts_codes_and_scales(device):
    cache = DeviceCache(2, 3, 64, 10, torch.int8, device)
    assert cache.nbytes == 10 * 2 * 6 * (64 + 2) and cache.stored_nbytes == 0
    cache.commit([0, 1, 2])
    assert cache.stored_nbytes == 3 * 2 * 6 * (64 + 2)
    plain = DeviceCache(2, 3, 64, 10, torch.float16, device)
    assert plain.nbytes == 10 * 2 * 6 * 64 * 2 and plain.kv_scale is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_noise_is_of_about_unit_size(dtype, device):
    cache = DeviceCache(2, 1, 16, CAPACITY, dtype, device)
    cache.fill_noise(torch.Generator(device).manual_seed(0))
    rows = cache.storage.float()
    rows = rows if cache.kv_scale is None else rows * cache.kv_scale[..., None].float()
    assert 0.9 < rows.std() < 1.3 and rows.abs().max() < 6


def test_fewer_bits_have_no_kernel(make):
    model = make("w8a16-kv4")
    with pytest.raises(ValueError, match="kv4 has no kernel"):
        model.new_cache(8)
