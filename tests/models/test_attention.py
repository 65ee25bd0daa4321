import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvl.models.attention import Attention, Block, HybridAttention


def one_by_one(q, k, v, tokens, window, shifted):
    """Local attention token by token: a loop over queries and over the keys of their window."""
    shift = [w // 2 if shifted and w < n else 0 for w, n in zip(window, tokens, strict=True)]
    places = list(itertools.product(*(range(n) for n in tokens)))
    windows = [
        tuple((p + s) // w for p, s, w in zip(place, shift, window, strict=True))
        for place in places
    ]
    out = torch.zeros_like(q)
    for t, mine in enumerate(windows):
        near = [u for u, other in enumerate(windows) if other == mine]
        scores = torch.einsum("bhd,bhnd->bhn", q[:, :, t], k[:, :, near]) / q.shape[-1] ** 0.5
        out[:, :, t] = torch.einsum("bhn,bhnd->bhd", scores.softmax(-1), v[:, :, near])
    return out


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("tokens", "window"), [((4, 4, 4), 2), ((5, 3, 4), 2), ((6, 8, 6), 4), ((2, 5, 7), 3)]
)
def test_windows_equal_a_naive_loop(tokens, window, shifted):
    torch.manual_seed(0)
    attention = HybridAttention(8, 2, tokens, window, shifted).double()
    count = tokens[0] * tokens[1] * tokens[2]
    qkv = torch.randn(3, 2, 2, count, 4, dtype=torch.float64)
    expected = one_by_one(*qkv, tokens, attention.window, shifted)
    assert torch.allclose(attention.attend_locally(qkv), expected, atol=1e-12)


def test_a_window_that_spans_the_grid_is_global_attention():
    torch.manual_seed(0)
    tokens = (3, 4, 2)
    hybrid = HybridAttention(8, 2, tokens, 4, shifted=True).double()
    plain = Attention(8, 2).double()
    plain.load_state_dict({k: v for k, v in hybrid.state_dict().items() if k != "mix"})
    x = torch.randn(2, 24, 8, dtype=torch.float64)
    assert torch.allclose(hybrid(x), plain(x), atol=1e-12)


def test_the_mix_starts_at_one_half_and_can_leave_either_side():
    torch.manual_seed(0)
    attention = HybridAttention(8, 2, (4, 4, 4), 2, False)
    qkv = torch.randn(3, 1, 2, 64, 4)
    both = attention.attend(qkv)
    local = attention.attend_locally(qkv)
    whole = Attention.attend(attention, qkv)
    assert torch.allclose(both, (local + whole) / 2, atol=1e-6)
    with torch.no_grad():
        attention.mix.copy_(torch.tensor([40.0, -40.0]))  # one head global, one local
    mixed = attention.attend(qkv)
    assert torch.allclose(mixed[:, 0], whole[:, 0]) and torch.allclose(mixed[:, 1], local[:, 1])


def test_gradients_are_right_in_float64():
    torch.manual_seed(0)
    block = Block(HybridAttention(4, 2, (3, 2, 2), 2, True), 4).double()
    with torch.no_grad():
        block.attention.mix.copy_(torch.tensor([0.3, -0.7]))
    x = torch.randn(1, 12, 4, dtype=torch.float64, requires_grad=True)
    parameters = tuple(block.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x, *parameters))


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor of any operation holds."""

    numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *(tensor.numel() for tensor in tensors)])
        return result


def test_local_attention_needs_no_token_by_token_matrix():
    """At 16^3 tokens no tensor is larger than an eighth of one score matrix."""
    with Largest() as seen, torch.device("meta"):
        attention = HybridAttention(64, 4, (16, 16, 16), 4, True)
        attention.attend_locally(torch.randn(3, 1, 4, 16**3, 16))
    assert 0 < seen.numel < 4 * 4096 * 4096 / 8  # heads x T x T
