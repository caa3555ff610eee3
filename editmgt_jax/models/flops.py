"""Floating-point operations of a transformer's forward pass, counted from its shapes: two for each multiply and add of its
matrix products; norms, softmax and other element-wise work are left out.

Axes    as in `editmgt_jax.config`
"""

from editmgt_jax.config import MGTConfig


def forward_flops(config: MGTConfig, grid: tuple[int, int], num_text: int, reference: bool) -> int:
    """One decode step of one sample, without guidance; what is constant over the steps (`MGT.condition`) is not in it.

    Args:
      grid: (H, W) of the VQ ids; num_text: T; reference: whether a source image is attended to.
    """
    width, tokens = config.width, grid[0] * grid[1]
    image = tokens // config.stride**2
    sequence = num_text + image * (2 if reference else 1)
    # Either kind of block has 12 D x D products a position: q, k, v, out and 8 of the feed-forward part.
    blocks = config.num_blocks * (2 * 12 * sequence * width**2 + 4 * sequence**2 * width)
    modulation = 2 * width**2 * (config.num_layers * (2 * 6 + 6) + config.num_single_layers * 2 * 3)
    ends = 2 * width**2 * (2 * tokens + 2 * image) + 2 * tokens * width * config.codebook_size
    resampling = 2 * (2 * image * 4 * width**2) if config.downsample else 0
    return blocks + modulation + ends + resampling
