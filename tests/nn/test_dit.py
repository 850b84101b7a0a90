"""The small diffusion transformer: shapes, start, order of tokens, learning."""

import pytest
import torch
from torch.nn import functional

from tradeoff.nn.decoder import MoEConfig
from tradeoff.nn.dit import Diffusion, DiT, DiTConfig

SMALL = DiTConfig(dim=16, layers=2, heads=2, hidden=32, classes=3)


def images(batch: int = 5, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mixture", [None, MoEConfig(4, 2, 8, router="dtop_p", balance=0.1)])
def test_shapes_of_colored_images_and_mixtures(mixture):
    model = DiT(DiTConfig(size=12, channels=3, patch=4, dim=16, layers=2, heads=2, ffn=mixture))
    out = model(images(4, 3, 12), torch.arange(4), torch.arange(4))
    assert out.shape == (4, 3, 12, 12)
    assert len(model.moe_layers) == (2 if mixture else 0)
    assert (model.aux_loss().item() > 0) == (mixture is not None)
    assert model.aux_loss().item() == 0
    if mixture:
        assert [int(layer.tokens) for layer in model.moe_layers] == [36, 36]


def test_blocks_are_the_identity_at_first_and_nothing_is_predicted():
    model = DiT(SMALL)
    x, condition = torch.randn(2, 16, 16), torch.randn(2, 16)
    assert torch.equal(model.blocks[0](x, condition), x)
    assert not model(images(2), torch.arange(2), torch.arange(2)).any()


def test_patches_come_back_where_they_were():
    """With one patch of noise in an image, a layer that passes tokens through predicts it there."""
    model = DiT(SMALL)
    with torch.no_grad():
        model.positions.zero_()
        model.embedding.weight.copy_(torch.eye(16)[:, :4])
        model.embedding.bias.zero_()
        model.output.weight.copy_(torch.eye(16)[:4])
    model.norm = torch.nn.Identity()
    x = images(2)
    torch.testing.assert_close(
        model(x, torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)), x
    )


def test_noise_grows_to_all_there_is():
    diffusion, x = Diffusion(), torch.ones(1000, 1, 2, 2)
    steps = torch.arange(1000)
    signal = diffusion.noisy(x, steps, torch.zeros_like(x))[:, 0, 0, 0]
    noise = diffusion.noisy(0 * x, steps, x)[:, 0, 0, 0]
    torch.testing.assert_close(signal.square() + noise.square(), torch.ones(1000))
    assert (signal.diff() < 0).all()
    assert signal[0] > 0.999
    assert signal[-1] < 0.01


def test_it_learns_the_noise_of_its_classes():
    """Images that are one gray level for each class: with the class the noise can be told better."""
    torch.manual_seed(0)
    losses = {}
    for informed in (True, False):
        model, diffusion = DiT(SMALL), Diffusion()
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        last = []
        for _ in range(120):
            labels, steps = torch.randint(3, (32,)), torch.randint(1000, (32,))
            x = (labels - 1.0).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
            noise = torch.randn(x.shape)
            out = model(diffusion.noisy(x, steps, noise), steps, labels if informed else 0 * labels)
            loss = functional.mse_loss(out, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            last.append(loss.item())
        losses[informed] = sum(last[-20:]) / 20
    assert losses[True] < 0.5
    assert losses[True] < losses[False]


@pytest.mark.parametrize("sizes", [{"size": 9}, {"dim": 18}, {"heads": 5}])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(ValueError, match=f"of {next(iter(sizes.values()))}|width|heads"):
        DiTConfig(**sizes)
