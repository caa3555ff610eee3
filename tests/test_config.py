"""Configs of released files: what this package does not have is refused by name, and never ignored."""

import json

import jax
import jax.numpy as jnp
import pytest

from editmgt_jax.config import CLIPTextConfig, Gemma2Config, MGTConfig, SchedulerConfig, VQConfig, dtype_name
from editmgt_jax.models.flops import forward_flops
from editmgt_jax.models.mgt import MGT, init_mgt

VQ = {"block_out_channels": [8, 8], "layers_per_block": 1, "latent_channels": 4, "num_vq_embeddings": 8}
VQ |= {"norm_num_groups": 4}


@pytest.mark.parametrize(
    "kind, values, message",
    [
        (CLIPTextConfig, {"hidden_size": 30, "num_attention_heads": 4}, "hidden_size must be a multiple"),
        (CLIPTextConfig, {"model_type": "t5"}, "model_type must be clip_text_model"),
        (VQConfig, VQ | {"block_out_channels": []}, "at least one width"),
        (VQConfig, VQ | {"block_out_channels": [8, 0]}, "positive multiples"),
        (VQConfig, VQ | {"_class_name": "AutoencoderKL"}, "_class_name must be VQModel"),
        (Gemma2Config, {"eos_token_id": []}, "eos_token_id must be int"),
        (Gemma2Config, {"rope_parameters": [1]}, "rope_parameters must be a JSON object"),
        (Gemma2Config, {"head_dim": 31}, "head_dim must be even"),
        (Gemma2Config, {"model_type": "llama"}, "model_type must be gemma2"),
        (Gemma2Config, {"rope_scaling": {"type": "linear"}}, "rope_scaling must be absent"),
        (MGTConfig, {"_class_name": "FluxTransformer2DModel"}, "_class_name must be Transformer2DModel"),
    ],
)
def test_unsupported_values(tmp_path, kind, values, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"config.json.*{message}"):
        kind.from_json(path)


def test_native_size_may_be_absent():
    assert SchedulerConfig.from_dict({"mask_token_id": 8255}).native_size is None


def test_dtype_names():
    assert [dtype_name(text) for text in ("bf16", "float32", "fp16")] == ["bfloat16", "float32", "float16"]
    with pytest.raises(ValueError, match="must be float32, bfloat16"):
        dtype_name("int8")


def test_operations_are_those_that_the_compiler_counts():
    """Up to what is no matrix product. One head and unrolled blocks: it counts the body of a loop once."""
    config = MGTConfig(
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=256,
        num_attention_heads=1,
        axes_dims_rope=(32, 112, 112),
        joint_attention_dim=64,
        pooled_projection_dim=64,
        vocab_size=1032,
        codebook_size=1024,
    )
    model, ids = MGT(config, unroll=8), jax.ShapeDtypeStruct((1, 16, 16), jnp.int32)
    params = jax.eval_shape(lambda key: init_mgt(model, key), jax.random.key(0))
    text, pooled = jax.ShapeDtypeStruct((1, 24, 64), jnp.float32), jax.ShapeDtypeStruct((1, 64), jnp.float32)

    trees = []

    def condition(params, text, pooled, ids):
        found = model.apply({"params": params}, text, pooled, jnp.zeros((1, 5)), ids, 1.0, method="condition")
        leaves, tree = jax.tree.flatten(found)  # a condition holds arrays, not shapes
        trees.append(tree)
        return leaves

    def forward(params, ids, given):
        return model.apply({"params": params}, ids, 0.5, trees[0].unflatten(given))[0]

    given = jax.eval_shape(condition, params, text, pooled, ids)
    counted = jax.jit(forward).lower(params, ids, given).compile().cost_analysis()["flops"]
    assert 0.9 * counted < forward_flops(config, (16, 16), 24, reference=True) < counted
