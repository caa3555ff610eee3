"""Against PyTorch, diffusers and transformers themselves, at sizes that the golden files do not have.

Needs the extra `parity`; left out where torch is not installed. Every model goes through files in the released layout, so
the weights' names and layouts are checked too.
"""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TEXT_LENGTH

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.models import VQModel as TorchVQModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402
from transformers import CLIPTextConfig as TorchCLIPTextConfig  # noqa: E402
from transformers import CLIPTextModelWithProjection, Gemma2ForCausalLM  # noqa: E402
from transformers import Gemma2Config as TorchGemma2Config  # noqa: E402

from benchmarks.torch_mgt import TorchMGT  # noqa: E402
from editmgt_jax.config import MGTConfig  # noqa: E402
from editmgt_jax.sampling import localize  # noqa: E402
from editmgt_jax.weights import directories  # noqa: E402
from editmgt_jax.weights.components import DIFFUSERS_NAME  # noqa: E402
from editmgt_jax.weights.files import WeightFiles  # noqa: E402
from editmgt_jax.weights.loading import load_clip, load_gemma, load_mgt, load_vq  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter random, norms around 1: nothing may cancel or stay at its initial zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else 1 / parameter[0].numel() ** 0.5
            parameter.copy_(torch.randn_like(parameter) * spread + (parameter.ndim == 1) * parameter.mean())
    return model.eval()


# ---- the image tokenizer


@pytest.mark.parametrize(
    "channels, layers, groups, attention, code_dim, grid",
    [
        ((6, 9, 15), 1, 3, True, 5, (3, 5)),
        ((8, 12), 2, 4, False, None, (6, 4)),
        ((10,), 1, 5, True, 7, (5, 5)),
    ],
)
def test_vq(tmp_path, channels, layers, groups, attention, code_dim, grid):
    levels = len(channels)
    theirs = randomised(
        TorchVQModel(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=channels,
            layers_per_block=layers,
            latent_channels=4,
            num_vq_embeddings=37,
            norm_num_groups=groups,
            vq_embed_dim=code_dim,
            mid_block_add_attention=attention,
        )
    )
    theirs.save_pretrained(tmp_path)
    model, params = load_vq(tmp_path)
    sides = [side * model.config.factor for side in grid]
    pixels = torch.rand(2, 3, *sides)
    with torch.no_grad():
        latents = theirs.encode(pixels).latents
        ids = theirs.quantize(latents)[2][2].reshape(2, *grid)
        decoded = theirs.decode(latents).sample
    ours = model.apply({"params": params}, jnp.moveaxis(jnp.asarray(pixels), 1, -1), method="latents")
    np.testing.assert_allclose(jnp.moveaxis(ours, -1, 1), latents, atol=2e-5 * float(latents.abs().max()))
    np.testing.assert_array_equal(model.apply({"params": params}, ours, method="quantize"), ids)
    painted = model.apply({"params": params}, jnp.asarray(ids), method="decode")
    np.testing.assert_allclose(jnp.moveaxis(painted, -1, 1), decoded, atol=2e-5 * max(1, float(decoded.abs().max())))


# ---- the text encoder


@pytest.mark.parametrize("eos_token_id", [2, 40], ids=["largest id ends", "first eos ends"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_text(tmp_path, eos_token_id, activation):
    config = TorchCLIPTextConfig(
        vocab_size=50,
        hidden_size=30,
        intermediate_size=44,
        projection_dim=18,
        num_hidden_layers=3,
        num_attention_heads=3,
        max_position_embeddings=TEXT_LENGTH,
        hidden_act=activation,
        bos_token_id=48,
        eos_token_id=eos_token_id,
        pad_token_id=1,
    )
    theirs = randomised(CLIPTextModelWithProjection(config))
    theirs.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(3, 39, (2, TEXT_LENGTH))
    for row, end in enumerate((5, 9)):
        ids[row, end - 3] = 2  # where the config says 2, it is not what ends a text
        ids[row, end:] = 49  # the largest id
        ids[row, end - 1] = 40  # the other convention's eos, which comes before the largest id
    with torch.no_grad():
        output = theirs(torch.tensor(ids), output_hidden_states=True)
    model, params = load_clip(tmp_path)
    states, pooled = model.apply({"params": params}, jnp.asarray(ids))
    np.testing.assert_allclose(states, output.hidden_states[-2], atol=2e-5)
    np.testing.assert_allclose(pooled, output.text_embeds, atol=2e-5)


@pytest.mark.parametrize(
    "layers, heads, groups, cap, window, kinds",
    [
        (3, 4, 2, 50.0, 4, None),
        (4, 6, 3, None, 5, ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]),
        (2, 3, 1, 0.7, 99, None),
        (1, 2, 2, 50.0, 3, None),
    ],
    ids=["window in alternate layers", "named layers without a cap", "one key head and a low cap", "no layer to run"],
)
def test_gemma2(tmp_path, layers, heads, groups, cap, window, kinds):
    config = TorchGemma2Config(
        vocab_size=60,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=10,
        query_pre_attn_scalar=7,
        sliding_window=window,
        attn_logit_softcapping=cap,
        layer_types=kinds,
        pad_token_id=0,
        attn_implementation="eager",
    )
    theirs = randomised(Gemma2ForCausalLM(config))
    theirs.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(1, 60, (2, TEXT_LENGTH))
    ids[0, :5] = 0  # padding on the left, which is attended to
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), output_hidden_states=True).hidden_states[-2]
    model, params = load_gemma(tmp_path)
    states = model.apply({"params": params}, jnp.asarray(ids))
    np.testing.assert_allclose(states, expected, atol=2e-5 * max(1, float(expected.abs().max())))


# ---- the transformer


@pytest.mark.parametrize(
    "config, grid",
    [
        (MGTConfig(num_layers=2, num_single_layers=3, attention_head_dim=20, num_attention_heads=3,
                   axes_dims_rope=(4, 8, 8), joint_attention_dim=14, pooled_projection_dim=11, vocab_size=53,
                   codebook_size=45, connector_type="linear", text_encoder_architecture="CLIP_Gemma2"), (6, 10)),
        (MGTConfig(num_layers=1, num_single_layers=4, attention_head_dim=12, num_attention_heads=5,
                   axes_dims_rope=(4, 4, 4), joint_attention_dim=60, pooled_projection_dim=60, vocab_size=40,
                   codebook_size=32, downsample=False, upsample=False, connector_type="none",
                   text_encoder_architecture="CLIP"), (5, 3)),
    ],
    ids=["down-sampled, linear connector", "flat, no connector"],
)  # fmt: skip
@pytest.mark.parametrize("strength", [None, 1.0, 0.3, 2.5], ids=lambda strength: f"strength {strength}")
def test_mgt(tmp_path, config, grid, strength):
    theirs = randomised(TorchMGT(config))
    save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, tmp_path / DIFFUSERS_NAME)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    model, params = load_mgt(tmp_path)
    batch, length = 3, 7
    ids = torch.randint(config.vocab_size, (batch, *grid))
    time, micro = torch.rand(batch), torch.tensor([[256.0, 160.0, 0.0, 8.0, 6.0]]).repeat(batch, 1)
    states, pooled = (
        torch.randn(batch, length, config.joint_attention_dim),
        torch.randn(batch, config.pooled_projection_dim),
    )
    reference = () if strength is None else (torch.randint(config.vocab_size, (batch, *grid)), strength)
    with torch.no_grad():
        expected = theirs(ids, time, states, pooled, micro, *reference)
    given = (jnp.asarray(x.numpy()) for x in (states, pooled, micro))
    reference = (jnp.asarray(reference[0].numpy()), strength) if reference else ()
    condition = model.apply({"params": params}, *given, *reference, method="condition")
    logits, _ = model.apply({"params": params}, jnp.asarray(ids.numpy()), jnp.asarray(time.numpy()), condition)
    np.testing.assert_allclose(jnp.moveaxis(logits, -1, 1), expected, atol=2e-5)


# ---- localisation


@pytest.mark.parametrize("grid, token_grid", [((3, 5), (6, 10)), ((8, 8), (16, 16)), ((7, 4), (9, 13))])
def test_upsampling_is_bicubic_interpolation(grid, token_grid):
    relevance = torch.rand(2, *grid)
    expected = nn.functional.interpolate(relevance[:, None], token_grid, mode="bicubic", align_corners=False)[:, 0]
    np.testing.assert_allclose(localize.upsample(jnp.asarray(relevance.numpy()), token_grid), expected, atol=1e-6)


# ---- what is written here, read there


@pytest.mark.parametrize(
    "folder, kind",
    [("vqvae", TorchVQModel), ("text_encoder", CLIPTextModelWithProjection), ("llm_encoder", Gemma2ForCausalLM)],
)
def test_their_classes_load_what_comes_back_from_orbax(with_llm, tmp_path, folder, kind):
    directories.to_orbax(with_llm, tmp_path / "orbax")
    directories.to_released(tmp_path / "orbax", tmp_path / "back")
    model, report = kind.from_pretrained(tmp_path / "back" / folder, output_loading_info=True)
    for name in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[name], name
    written = WeightFiles(with_llm / folder)
    state = {key: value for key, value in model.state_dict().items() if key in written.tensors}
    assert state.keys() == written.tensors.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(value.numpy(), written.read(key), err_msg=key)
