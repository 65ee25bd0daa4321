import torch
from torch.nn import functional as F

from mvl.models.fusion import MultiScaleFusion

TOKENS, KERNELS, WIDTH = (3, 4, 2), (1, 3, 5), 6


def states():
    torch.manual_seed(0)
    return list(torch.randn(3, 2, 24, WIDTH, dtype=torch.float64))


def test_it_starts_as_exactly_the_identity():
    given = states()
    assert torch.equal(MultiScaleFusion(WIDTH, TOKENS, KERNELS).double()(given), given[-1])


def test_it_equals_a_loop_over_channels_and_states():
    fusion = MultiScaleFusion(WIDTH, TOKENS, KERNELS).double()
    with torch.no_grad():
        fusion.scale.normal_()
    given = states()
    seen = []
    for state, convolution in zip(given, fusion.scales, strict=True):
        for channel in range(WIDTH):
            grid = state[:, :, channel].view(2, 1, *TOKENS)
            kernel, bias = convolution.weight[channel][None], convolution.bias[channel][None]
            padding = convolution.kernel_size[0] // 2
            seen.append(F.conv3d(grid, kernel, bias, padding=padding).flatten(1))
    mixed = torch.stack(seen, -1) @ fusion.mix.weight.T + fusion.mix.bias
    assert torch.allclose(fusion(given), given[-1] + fusion.scale * mixed, atol=1e-12)


def test_gradients_are_right_in_float64():
    fusion = MultiScaleFusion(2, (2, 2, 1), (1, 3)).double()
    with torch.no_grad():
        fusion.scale.normal_()
    first, last = (torch.randn(1, 4, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    parameters = tuple(fusion.parameters())
    assert torch.autograd.gradcheck(lambda a, b, *_: fusion([a, b]), (first, last, *parameters))
