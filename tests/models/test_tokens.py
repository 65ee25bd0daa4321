import torch
from torch.nn import functional as F

from mvl.models.tokens import ConvHead, PatchEmbed, from_patches, to_patches, token_grid

PATCH, GRID = (2, 4, 8), (6, 8, 16)


def test_patches_come_back_as_the_volume():
    volume = torch.randn(2, 3, *GRID)
    patches = to_patches(volume, PATCH)
    assert patches.shape == (2, 3 * 2 * 2, 3 * 2 * 4 * 8)
    assert torch.equal(from_patches(patches, PATCH, token_grid(GRID, PATCH)), volume)


def test_embedding_is_a_strided_convolution():
    embed = PatchEmbed(3, PATCH, 5)
    volume = torch.randn(2, 3, *GRID)
    kernel = embed.project.weight.view(5, 3, *PATCH)
    expected = F.conv3d(volume, kernel, embed.project.bias, stride=PATCH)
    assert torch.allclose(embed(volume), expected.flatten(2).transpose(1, 2), atol=1e-5)


def test_conv_head_sees_across_patch_borders():
    """A voxel's logit depends on the image on the other side of a patch border."""
    torch.manual_seed(0)
    head = ConvHead(1, 1, 8, (4, 4, 4), 16, (2, 2, 2))
    tokens, volume = torch.randn(1, 8, 16), torch.randn(1, 1, 8, 8, 8, requires_grad=True)
    head(tokens, volume)[0, 0, 3, 3, 3].backward()
    assert volume.grad[0, 0, 4, 3, 3] != 0
