"""Gemma 2 as a text encoder: padded ids -> token states.

Axes    B batch, T tokens, E width of the states, A query heads, M key and value heads, K head width
Source  transformers Gemma2ForCausalLM as the released editor uses it: `hidden_states[-2]`, so every layer but the last runs,
        and neither the final norm nor the LM head; no padding mask, so padding is attended to under the causal mask
Differs the unused layer, norm and head have no parameters here
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from editmgt_jax.config import Gemma2Config
from editmgt_jax.models.layers import along_channels, constrain, rotate
from editmgt_jax.shapes import Array, Float, Int


class GemmaNorm(nn.Module):
    """x / rms(x) * (1 + scale) in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return (normed * along_channels(1.0 + scale.astype(jnp.float32), x)).astype(x.dtype)


class GemmaBlock(nn.Module):
    config: Gemma2Config
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, slides, cos, sin):
        """x [B T E]; slides: whether this layer sees only the sliding window."""
        config = self.config

        def dense(features, name):
            return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)

        def norm(name):
            return GemmaNorm(config.rms_norm_eps, name=name)

        x = constrain(x, "batch", None, None)
        x = x + norm("norm2")(dense(config.hidden_size, "o_proj")(self._attention(norm("norm1")(x), slides, cos, sin)))
        y = norm("norm3")(x)
        gate = nn.gelu(dense(config.intermediate_size, "gate_proj")(y), approximate=True)
        y = dense(config.hidden_size, "down_proj")(gate * dense(config.intermediate_size, "up_proj")(y))
        return constrain(x + norm("norm4")(y), "batch", None, None), None

    def _attention(self, x, slides, cos, sin):
        """[B T E] -> [B T A*K]; the A query heads share M keys and values in runs of A/M."""
        config, (batch, length, _) = self.config, x.shape
        groups = config.num_key_value_heads

        def heads(name, count):
            y = nn.Dense(count * config.head_dim, use_bias=False, dtype=self.dtype, name=name)(x)
            return y.reshape(batch, length, count, config.head_dim)

        q = rotate(heads("q_proj", config.num_attention_heads), cos, sin)
        k, v = rotate(heads("k_proj", groups), cos, sin), heads("v_proj", groups)
        q = q.reshape(batch, length, groups, -1, config.head_dim)
        logits = jnp.einsum("bqmak,bsmk->bmaqs", q, k, preferred_element_type=jnp.float32)
        logits = logits * config.query_pre_attn_scalar**-0.5
        if config.attn_logit_softcapping is not None:
            logits = config.attn_logit_softcapping * jnp.tanh(logits / config.attn_logit_softcapping)
        position = jnp.arange(length)
        behind = position[:, None] - position[None, :]  # [T T]: how far a key lies behind its query
        seen = ((behind >= 0) & (jnp.logical_not(slides) | (behind < config.sliding_window)))[None, None, None]
        weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1).astype(v.dtype)
        return jnp.einsum("bmaqs,bsmk->bqmak", weights, v).reshape(batch, length, -1)


class Gemma2(nn.Module):
    """See the module docstring. `dtype` is the compute dtype; norms and softmax are float32."""

    config: Gemma2Config
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        """Ids -> states."""
        config = self.config
        ids = constrain(ids, "batch", None)
        x = nn.Embed(config.vocab_size, config.hidden_size, dtype=self.dtype, name="token_embedding")(ids)
        x = constrain(x, "batch", None, None)
        x = x * jnp.asarray(config.hidden_size**0.5, self.dtype)
        layers = config.num_hidden_layers - 1
        if not layers:
            return x
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        angles = np.outer(np.arange(ids.shape[1], dtype=np.float32), 1 / np.float32(config.rope_theta) ** exponents)
        cos, sin = np.cos(angles), np.sin(angles)  # [T K/2], float32 throughout, as in PyTorch
        scanned = nn.scan(
            GemmaBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=layers,
        )
        slides = jnp.array([kind == "sliding_attention" for kind in config.layer_types[:layers]])
        return scanned(config, self.dtype, name="layers")(x, slides, cos, sin)[0]
