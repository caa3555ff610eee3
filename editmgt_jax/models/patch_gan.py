"""A discriminator of patches: how real a picture looks, patch by patch.

Axes    B batch, Y X pixels, y x patches
Source  PatchGAN of pix2pix (Isola et al. 2017), as VQGAN (Esser et al. 2021) uses it
Differs GroupNorm in place of BatchNorm: there are no statistics of batches to keep. Pictures are in [0, 1]
"""

import flax.linen as nn

from editmgt_jax.models.layers import GroupNorm
from editmgt_jax.shapes import Array, Float

GROUP = 16  # channels that are normalised together
_WIDEST = 8  # times the width: wider than this no convolution is


class PatchGAN(nn.Module):
    """Convolutions of 4 x 4. Attributes: width of the first, half a multiple of `GROUP`; halvings, the number of stride 2."""

    width: int = 64
    halvings: int = 3

    @nn.compact
    def __call__(self, pixels: Float[Array, "B Y X 3"]) -> Float[Array, "B y x"]:
        """Logits, larger where a patch looks real. They are not clipped."""

        def convolved(x, features, stride, name):
            return nn.Conv(features, (4, 4), stride, kernel_init=nn.initializers.normal(0.02), name=name)(x)

        x = 2 * pixels - 1
        for level in range(self.halvings + 1):
            features = self.width * min(2**level, _WIDEST)
            x = convolved(x, features, 2 if level < self.halvings else 1, f"convolution_{level}")
            if level:
                x = GroupNorm(features // GROUP, name=f"norm_{level}")(x)
            x = nn.leaky_relu(x, 0.2)
        return convolved(x, 1, 1, "logits")[..., 0]
