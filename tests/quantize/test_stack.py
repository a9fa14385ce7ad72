"""A stack of 1-bit blocks: packing, cutting, and the way to a file and back."""

import pytest
import torch

from hspec_lab.quant.stack import Stack, expand_block, pack_signs

# inputs that fill whole bytes and inputs that do not
SHAPES = [(6, 16), (5, 13), (1, 1), (3, 8)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_stack(R, C, n_blocks=3, rank=2):
    blocks = [
        (
            pack_signs(random(R, C, seed=10 * i)),
            random(R, rank, seed=10 * i + 1).bfloat16(),
            random(rank, C, seed=10 * i + 2).bfloat16(),
        )
        for i in range(n_blocks)
    ]
    return Stack.of(blocks, random(C, seed=99).abs() + 0.5)


def test_a_block_by_hand():
    """Signs + - + and - + +, magnitudes (1, 2) times (1, 2, 4); zero counts as positive."""
    signs = pack_signs(torch.tensor([[3.0, -1.0, 0.0], [-2.0, 5.0, 1e-9]]))
    assert signs.tolist() == [[0b101], [0b110]]
    up, down = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 2.0, 4.0]])
    expected = [[1.0, -2.0, 4.0], [-2.0, 4.0, 8.0]]
    assert expand_block(signs, up.bfloat16(), down.bfloat16()).tolist() == expected
    block = (signs, up.bfloat16(), down.bfloat16())
    stack = Stack.of([block, block], torch.tensor([1.0, 2.0, 4.0]))
    assert stack.dequantized().tolist() == [[2.0, -2.0, 2.0], [-4.0, 4.0, 4.0]]


@pytest.mark.parametrize("shape", SHAPES)
def test_signs_come_back_exactly(shape):
    matrix = random(*shape)
    R, C = shape
    ones = torch.ones(R, 1).bfloat16(), torch.ones(1, C).bfloat16()
    assert torch.equal(expand_block(pack_signs(matrix), *ones), matrix.sign())


@pytest.mark.parametrize(("R", "C"), SHAPES)
def test_bytes_are_those_of_signs_thin_matrices_and_scale(R, C):
    stack = random_stack(R, C, n_blocks=3, rank=2)
    block = R * -(-C // 8) + 2 * 2 * (R + C)
    assert (stack.block_nbytes, stack.nbytes) == (block, 3 * block + 4 * C)
    assert stack.effective_bits == 8 * stack.nbytes / (R * C)
    assert (stack.shape, stack.kind) == ((R, C), "stack 2 3")


@pytest.mark.parametrize(("R", "C"), SHAPES)
def test_a_cut_is_the_sum_of_the_first_blocks(R, C):
    stack = random_stack(R, C, n_blocks=3)
    total = torch.zeros(R, C)
    for n in (1, 2, 3):
        total = total + stack.block(n - 1)
        cut = stack.cut(n)
        assert torch.equal(cut.dequantized(), total / stack.scale)
        assert cut.nbytes == stack.nbytes - (3 - n) * stack.block_nbytes
        assert cut.kind == f"stack 2 {n}"


@pytest.mark.parametrize("n", [0, -1, 4])
def test_a_cut_that_leaves_nothing_or_more_than_there_is_is_refused(n):
    with pytest.raises(ValueError, match=f"1 to 3 blocks to keep, not {n}"):
        random_stack(4, 8).cut(n)


def test_rows_can_be_reordered():
    stack, order = random_stack(5, 13), torch.tensor([3, 0, 4, 1, 2])
    reordered = stack.reordered(order)
    assert torch.equal(reordered.dequantized(), stack.dequantized()[order])
    assert reordered.kind == stack.kind and reordered.nbytes == stack.nbytes


def test_expanding_leaves_the_stack_as_it_was():
    stack = random_stack(5, 13)
    first = stack.dequantized()
    assert torch.equal(stack.dequantized(), first)


@pytest.mark.parametrize("cut", [1, 3])
def test_a_stack_comes_back_from_its_tensors(cut):
    stack = random_stack(5, 13).cut(cut)
    again = Stack.from_file(stack.kind, stack.tensors(), list(stack.shape))
    assert torch.equal(again.dequantized(), stack.dequantized())
    assert (again.kind, again.shape, again.nbytes) == (stack.kind, stack.shape, stack.nbytes)


def test_tensors_of_another_stack_are_refused():
    stack = random_stack(5, 13)
    with pytest.raises(ValueError, match="'stack 2 8' was to be read, .* 'stack 2 3'"):
        Stack.from_file("stack 2 8", stack.tensors(), (5, 13))
