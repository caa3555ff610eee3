"""Architectures as frozen dataclasses, read from and written to the released `config.json` files.

Axes used by every module of this package (one letter, one meaning):

    B batch            T text tokens        E width of the text states   P width of the pooled text vector
    H W VQ grid        L = H*W              h w MGT grid                 N = h*w image tokens in the MGT
    D width of the MGT S joint sequence     G segments of a sequence     A attention heads, K head width
    C codebook size    V vocabulary size    I decoding steps             J blocks whose attention is read
    R weightings of the text tokens for which attention is read

Source: the config.json of the released checkpoints (diffusers layout).
"""

from editmgt_jax.config.architectures import (
    CLIPTextConfig,
    Gemma2Config,
    MGTConfig,
    VQConfig,
    dtype_name,
    micro_conditions,
)
from editmgt_jax.config.lora import LoRAConfig
from editmgt_jax.config.peft import PEFTConfig
from editmgt_jax.config.scheduler import RELEASED_NEGATIVE_PROMPT, SchedulerConfig

__all__ = [
    "CLIPTextConfig",
    "Gemma2Config",
    "LoRAConfig",
    "MGTConfig",
    "PEFTConfig",
    "RELEASED_NEGATIVE_PROMPT",
    "SchedulerConfig",
    "VQConfig",
    "dtype_name",
    "micro_conditions",
]
