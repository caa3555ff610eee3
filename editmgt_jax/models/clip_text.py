"""CLIP text tower with projection: padded ids -> token states and one pooled vector.

Axes    B batch, T tokens, E width, P projection width
Source  transformers CLIPTextModelWithProjection, as the released pipelines use it: causal mask, no padding mask,
        token states are the penultimate hidden states (before the final norm), pooled is the projected end-of-text state
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from editmgt_jax.config import CLIPTextConfig
from editmgt_jax.errors import UserError
from editmgt_jax.models.layers import constrain
from editmgt_jax.shapes import Array, Float, Int


def _activation(name):
    """'gelu' is the exact one, with the error function; 'quick_gelu' its sigmoid approximation."""
    return partial(nn.gelu, approximate=False) if name == "gelu" else lambda x: x * jax.nn.sigmoid(1.702 * x)


class CLIPBlock(nn.Module):
    config: CLIPTextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, _):
        config, (batch, length, width) = self.config, x.shape

        def dense(features, name):
            return nn.Dense(features, dtype=self.dtype, name=name)

        def norm(name):
            return nn.LayerNorm(config.layer_norm_eps, use_fast_variance=False, name=name)

        x = constrain(x, "batch", None, None)
        y = norm("norm1")(x)
        q, k, v = (
            dense(width, name)(y).reshape(batch, length, config.num_attention_heads, -1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        logits = jnp.einsum("bqak,bsak->baqs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
        weights = jax.nn.softmax(jnp.where(causal, logits, -jnp.inf), axis=-1).astype(v.dtype)
        x = x + dense(width, "out_proj")(jnp.einsum("baqs,bsak->bqak", weights, v).reshape(batch, length, width))
        y = _activation(config.hidden_act)(dense(config.intermediate_size, "fc1")(norm("norm2")(x)))
        x = constrain(x + dense(width, "fc2")(y), "batch", None, None)
        return x, x


class CLIPText(nn.Module):
    """See the module docstring. `dtype` is the compute dtype; norms and softmax are float32."""

    config: CLIPTextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> tuple[Float[Array, "B T E"], Float[Array, "B P"]]:
        """Ids -> (states, pooled vectors)."""
        config, length = self.config, ids.shape[1]
        ids = constrain(ids, "batch", None)
        if length > config.max_position_embeddings:
            raise UserError(
                f"at most {config.max_position_embeddings} text tokens fit this encoder; got {length}: "
                "pad and truncate with its own tokenizer"
            )
        tokens = nn.Embed(config.vocab_size, config.hidden_size, dtype=self.dtype, name="token_embedding")(ids)
        positions = nn.Embed(
            config.max_position_embeddings, config.hidden_size, dtype=self.dtype, name="position_embedding"
        )(jnp.arange(length)[None])
        embedded = constrain(tokens + positions, "batch", None, None)
        scanned = nn.scan(
            CLIPBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_hidden_layers,
        )
        last, states = scanned(config, self.dtype, name="layers")(embedded, None)  # states [layers B T E]
        penultimate = jnp.concatenate([embedded[None], states])[-2]
        final = nn.LayerNorm(config.layer_norm_eps, use_fast_variance=False, name="final_norm")(last)
        pooled = final[jnp.arange(ids.shape[0]), self._end_of_text(ids)]
        projected = nn.Dense(config.projection_dim, use_bias=False, dtype=self.dtype, name="text_projection")(pooled)
        return penultimate, projected

    def _end_of_text(self, ids):
        """[B T] -> [B]. Configs that carry the historical eos_token_id 2 mean 'the largest id', the others the first eos (Q14)."""
        if self.config.eos_token_id == 2:
            return jnp.argmax(ids, axis=-1)
        return jnp.argmax(ids == self.config.eos_token_id, axis=-1)
