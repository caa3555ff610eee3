"""A copy-friendly initialisation of the MGT: before training, the editor returns its source.

Most tokens of an edit equal the source's, and a plainly initialised model spends most of its training learning to copy.
The weights below make it copy from the start, with the released architecture unchanged:

* the token embedding is the whitened codebook, lifted to the sphere and turned so that its channels sum to zero
  (LayerNorm then leaves it alone); the mask id has a direction of its own;
* the down-sampling convolution writes the four tokens of a cell side by side; the projections are identities;
* in block 0 some heads have constant queries and keys on the fastest rotary pairs of both spatial axes: they look at
  the same position of the source, and their values go to free channels;
* the head is the inverse: it reads those channels, unfolds the cell and compares with the codebook.

All other residual branches start closed (their gates are zero), so nothing disturbs the copy until it is learnt.
"""

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.config import MGTConfig
from editmgt_jax.errors import UserError
from editmgt_jax.training.state import Params

_COPY_SHARPNESS = 3.0  # weight of the query and key norms of block 0: how narrowly the copying heads look
_LOGIT_SCALE = 24.0  # logit of a perfect match with the codebook
_CONSTANT = 2.0  # channel appended to whitened codes, so that their length survives the normalisation


def _zero_sum_basis(size: int) -> np.ndarray:
    """[size size+1] orthonormal rows, each summing to zero."""
    full = np.eye(size + 1) - 1 / (size + 1)
    return np.linalg.svd(full)[2][:size]


def token_directions(codebook: np.ndarray | jax.Array) -> np.ndarray:
    """[C Z] codebook -> [C+1 Z+3] unit, zero-sum directions of the codes and, last, of the mask."""
    codebook = np.asarray(codebook, np.float64)
    centred = codebook - codebook.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(centred.T))
    white = centred @ vectors / np.sqrt(np.maximum(values, 1e-8 * values.max()))
    lifted = np.concatenate([white, np.full((len(white), 1), _CONSTANT)], axis=1)
    lifted /= np.linalg.norm(lifted, axis=1, keepdims=True)
    codes = np.concatenate([lifted, np.zeros((len(lifted), 1))], axis=1)
    mask = np.zeros((1, codes.shape[1]))
    mask[0, -1] = 1.0
    return np.concatenate([codes, mask]) @ _zero_sum_basis(codes.shape[1])


def _channel_blocks(config: MGTConfig, per_token: int):
    """Channels of a cell's own tokens, and the free channels that copies go to."""
    cells = config.stride**2
    need = 2 * cells * per_token
    heads = -(-cells * per_token // config.attention_head_dim)
    if need > config.width or heads > config.num_attention_heads:
        raise UserError(
            f"the copy-friendly initialisation needs a width of at least {need} and {heads} heads for codes of "
            f"{per_token - 3} dimensions; the model has width {config.width} and {config.num_attention_heads} heads"
        )
    return np.arange(cells * per_token), np.arange(cells * per_token, need)


def _copying_query(config: MGTConfig) -> np.ndarray:
    """[K] constant query and key of a copying head: all energy on the two fastest pairs of each spatial axis."""
    half = config.attention_head_dim // 2
    first_row = config.axes_dims_rope[0] // 2
    first_column = first_row + config.axes_dims_rope[1] // 2
    query = np.zeros(2 * half)
    for first in (first_row, first_column):
        query[first], query[first + 1] = np.sqrt(0.35), np.sqrt(0.15)
    return query


NOISE = 0.02  # scale of the random values of embedding channels that carry no code


def copy_friendly(params: Params, config: MGTConfig, codebook: np.ndarray | jax.Array, key: jax.Array) -> Params:
    """Returns `params` of an MGT, overwritten so that the model copies its reference.

    Args:
      params: freshly initialised tree of the MGT; codebook: [C Z] of the tokenizer whose ids it edits.
    Errors: UserError for a transformer that is too small for the codes.
    """
    directions = token_directions(codebook)
    per_token, cells, width = directions.shape[1], config.stride**2, config.width
    own, copied = _channel_blocks(config, per_token)
    params = jax.tree.map(np.array, params)

    embedding = NOISE * np.array(jax.random.normal(key, params["token_embedding"]["embedding"].shape))
    embedding[:, :per_token] = 0
    embedding[: len(codebook), :per_token] = directions[:-1]
    embedding[config.mask_token_id, :per_token] = directions[-1]
    params["token_embedding"]["embedding"] = embedding
    params["token_conv"]["kernel"] = np.eye(width)
    if config.downsample:
        kernel = NOISE * params["down_conv"]["kernel"]
        for cell in range(cells):
            block = own[cell * per_token : (cell + 1) * per_token]
            kernel[cell // 2, cell % 2][:, block] = 0
            kernel[cell // 2, cell % 2][np.arange(per_token), block] = 1
        params["down_conv"]["kernel"] = kernel
    params["project_in"]["kernel"] = np.eye(width)

    for stack in ("double_blocks", "single_blocks"):
        for name in ("modulation", "text_modulation"):
            if name in params[stack]:
                closed = params[stack][name]
                closed["kernel"], closed["bias"] = np.zeros_like(closed["kernel"]), np.zeros_like(closed["bias"])
    _open_copying_heads(params["double_blocks"], config, own, copied)

    kernel = np.zeros((width, width))
    kernel[copied, own] = 1
    params["project_out"]["kernel"] = kernel
    if config.upsample:
        kernel = np.zeros((width, cells, width))
        for cell in range(cells):
            kernel[own[cell * per_token : (cell + 1) * per_token], cell, np.arange(per_token)] = 1
        params["up_conv"]["kernel"] = kernel.reshape(width, cells * width)
    params["head_conv"]["kernel"] = np.eye(width)
    logits = params["head_logits"]["kernel"] * NOISE
    logits[:per_token] = directions[:-1].T * _LOGIT_SCALE / np.sqrt(width)
    params["head_logits"]["kernel"] = logits
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def _open_copying_heads(blocks, config: MGTConfig, own, copied) -> None:
    """Block 0, in place: constant queries and keys, values from `own` to `copied` channels, its gate open."""
    heads = range(-(-len(own) // config.attention_head_dim))
    query, head = _copying_query(config), config.attention_head_dim
    for head_index in heads:
        channels = slice(head_index * head, (head_index + 1) * head)
        for name in ("to_q", "to_k"):
            blocks[name]["kernel"][0][:, channels] = 0
            blocks[name]["bias"][0][channels] = query * np.sqrt(head)
    for name in ("norm_q", "norm_k"):
        blocks[name]["scale"][0] = _COPY_SHARPNESS
    blocks["to_v"]["kernel"][0][:, : len(own)] = 0
    blocks["to_v"]["kernel"][0][own, np.arange(len(own))] = 1
    blocks["to_out"]["kernel"][0][:] = 0
    blocks["to_out"]["kernel"][0][np.arange(len(own)), copied] = 1
    gate_attn = 2  # chunk order: shift, scale, gate of attention, then of the feed-forward
    blocks["modulation"]["bias"][0][gate_attn * config.width : (gate_attn + 1) * config.width] = 1
