"""Every family of sequence classifiers: conductance is what its definition says of the user's call.

The reference knows nothing of hooks on word embeddings, batches or padding: one text at a time, it
moves the rows of the embedding table itself from the padding token's to their own.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as FAMILIES,
)

from transfer_pruner.text import embed_text
from transfer_pruner.text.tokens import Encoder

TEXTS = [
    "flood in the city",
    "we need water and food for two hundred people at the old school",
    "road closed tonight",
]
N_STEPS = 4
# As a share of a layer's largest attribution.
TOLERANCE = 1e-4

SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "text_vocab_size"), 40),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim"), 32),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim", "rotary_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "d_inner", "n_inner", "hidden_dim", "ffn_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "dff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_length"), 64),
    **dict.fromkeys(("head_dim", "d_kv", "v_head_dim", "kv_channels"), 8),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "mask_token_id": 3,
    "decoder_start_token_id": 0,
}
# What a family needs beside that to be small, or to be at all.
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
LATENT |= {"num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
LINEAR |= {"linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]}
LINEAR |= {"num_experts_per_tok": 2}
MAMBA = {
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
    "layers_block_type": ["linear_attention", "hybrid"],
}
MAMBA |= {"num_key_value_heads": 4, "num_hidden_layers": 2}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
T5 = {"decoder_start_token_id": 0}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "minicpm3"), LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text"), LINEAR),
    **dict.fromkeys(("t5", "mt5", "umt5"), T5),
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
    },
    "esmc": {"num_key_value_heads": 4},
    "funnel": {"block_sizes": [1, 1], "d_head": 8},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "gptj": {"rotary_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": 32, "patch_size": 16},
    "lilt": {"hidden_size": 48},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "mistral4": {**LATENT, "head_dim": 16},
    "perceiver": {"num_latents": 8, "d_latents": 16, "num_self_attends_per_block": 2},
    "qwen3_moe": {"num_experts_per_tok": 2},
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "attention_head_size": 8,
        "attn_layers": ["local", "lsh"],
        "feed_forward_size": 48,
        "hash_seed": 0,
    },
    "roc_bert": {"pronunciation_vocab_size": 40, "shape_vocab_size": 40},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**MAMBA, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {**MAMBA, "n_mamba_heads": 4, "adapter_rank": 4},
}
# Their kernels know no other type.
SINGLE = {"axk1", "axk2", "deepseek_v2", "gpt_oss", "hunyuan_v1_moe", "jamba", "minimax"}
SINGLE |= {"mistral4", "mixtral", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next"}
# What these configurations do not let be set.
FIXED = {
    "falcon": {"head_dim"},
    "funnel": {"num_hidden_layers"},
    "reformer": {"num_hidden_layers"},
    "xlnet": {"max_position_embeddings"},
}


TINY_EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
TINY_EYES |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}


def small_config(family: str, **changes: Any) -> PretrainedConfig:
    if family in ("gemma3", "modernvbert", "ultravbert", "qwen3_5"):
        eyes = {"depth": 1, "num_heads": 2, "out_hidden_size": 32} if family == "qwen3_5" else {}
        words = {"gemma3": "gemma3_text", "qwen3_5": "qwen3_5_text"}.get(
            family, family.replace("vbert", "bert")
        )
        text = small_config(words, **changes)
        return CONFIG_MAPPING[family](
            text_config=text.to_dict(), vision_config={**TINY_EYES, **eyes}, pad_token_id=0
        )
    if family == "t5gemma":
        part = {
            name: value
            for name, value in SMALL.items()
            if name in CONFIG_MAPPING["gemma2"]().to_dict()
        }
        return CONFIG_MAPPING[family](encoder=part, decoder=part, pad_token_id=0)
    kind = CONFIG_MAPPING[family]
    has = kind()
    small = {name: value for name, value in SMALL.items() if hasattr(has, name)}
    for name in FIXED.get(family, ()):
        small.pop(name, None)
    return kind(**{**small, **OWN.get(family, {}), **changes})


def small_model(family: str, **changes: Any) -> PreTrainedModel:
    config = small_config(family, **changes)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    # Sharp turns of the path leave little of float32.
    model.to(torch.float32 if family in SINGLE else torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            # Weights as small as a new model's leave differences too small to measure.
            if parameter.dim() > 1:
                parameter.mul_(3)
        # Where nothing is added to an embedding of 0, a norm jumps as the path leaves it.
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].normal_(0, 0.1)
    return model


def by_definition(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    layers: list[str],
    target: int,
    n_steps: int,
) -> dict[str, np.ndarray]:
    """Conductance of one text: gradients times changes of activations, at every position."""
    tokens = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    table = next(
        x for x in (m.weight for m in model.modules() if hasattr(m, "weight")) if len(x) == 40
    )
    whole = table.detach().clone()
    pad = tokenizer.eos_token_id if tokenizer.pad_token is None else tokenizer.pad_token_id
    special = [pad, tokenizer.cls_token_id, tokenizer.sep_token_id]
    nodes, _ = np.polynomial.legendre.leggauss(n_steps + 1)
    found: dict[str, list[Tensor]] = {}
    gradients: dict[str, list[Tensor]] = {}

    def run(alpha: float) -> None:
        outputs: dict[str, list[Tensor]] = {}

        def keep(name: str, output: Any) -> None:
            while not isinstance(output, Tensor):
                output = output[0]
            outputs.setdefault(name, []).append(output)

        names = {layer.partition("#")[0] for layer in layers}
        hooks = [
            model.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: keep(name, output)
            )
            for name in names
        ]
        moved = (1 - alpha) * whole[pad] + alpha * whole
        moved[special] = whole[special]
        table.data.copy_(moved)
        try:
            logit = model(**tokens).logits[0, target]
        finally:
            table.data.copy_(whole)
            for hook in hooks:
                hook.remove()
        for layer in layers:
            name, _, number = layer.partition("#")
            output = outputs[name][int(number or 1) - 1]
            found.setdefault(layer, []).append(output.detach())
            (slope,) = torch.autograd.grad(logit, output, retain_graph=True)
            gradients.setdefault(layer, []).append(slope)

    for alpha in (nodes + 1) / 2:
        run(float(alpha))
    conductance = {}
    for layer in layers:
        steps = zip(gradients[layer], found[layer], found[layer][1:], strict=False)
        total = sum((slope * (after - before) for slope, before, after in steps), torch.zeros(()))
        module = model.get_submodule(layer.partition("#")[0])
        if isinstance(module, nn.Conv1d) or type(module).__name__ == "SqueezeBertLayerNorm":
            total = total.transpose(1, 2)
        conductance[layer] = total.numpy()
    return conductance


def worst_difference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **settings: Any
) -> float:
    """How far embed_text is from the definition, as a share of a layer's largest attribution."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embedding = embed_text(
            model, tokenizer, TEXTS, name="t", target=1, n_steps=N_STEPS, **settings
        )
    worst = 0.0
    for row, text in enumerate(TEXTS):
        # Where few steps leave much unexplained, more are taken.
        steps = embedding.provenance["n_steps"]
        expected = by_definition(model, tokenizer, text, [*embedding.layers], 1, steps)
        for layer, values in expected.items():
            mine = embedding.signals[f"examples/{layer}"][row]
            # The width stands last, but in SqueezeBERT, whose positions do.
            width = max(axis for axis, size in enumerate(values.shape) if size == len(mine))
            values = values.sum(axis=tuple({*range(values.ndim)} - {width}))
            worst = max(worst, np.abs(mine - values).max() / np.abs(values).max())
    return worst


@pytest.fixture(scope="module")
def plain(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that gives what every family takes: no token types."""
    one = copy.deepcopy(tokenizer)
    one.model_input_names = ["input_ids", "attention_mask"]
    return one


@pytest.mark.parametrize(
    "family", ["roberta", "esm", "gpt2", "llama", "bart", "t5", "ctrl", "ibert", "perceiver"]
)
def test_conductance_is_what_its_definition_says_of_the_users_call(
    family: str, plain: PreTrainedTokenizerFast
) -> None:
    assert worst_difference(small_model(family), plain) < TOLERANCE


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("pad", [2, None])
def test_decoders_classify_where_the_user_sees_them_do(
    family: str, pad: int | None, plain: PreTrainedTokenizerFast
) -> None:
    # 2 ends a text too: the last token that is no padding is the one before it.
    own = copy.deepcopy(plain)
    own.pad_token = None if pad is None else own.sep_token
    own.eos_token = own.sep_token
    model = small_model(family, pad_token_id=pad)
    assert worst_difference(model, own) < TOLERANCE
    assert model.config.pad_token_id == pad


def test_what_a_batch_has_in_common_is_seen_however_small_the_logits_are(
    plain: PreTrainedTokenizerFast,
) -> None:
    # A decoder that is classified at its last position, padding or not, with a head close to 0.
    model = small_model("gpt2", pad_token_id=39)
    with torch.no_grad():
        model.score.weight.mul_(1e-5)
    assert worst_difference(model, plain) < TOLERANCE


def test_token_types_are_the_users(plain: PreTrainedTokenizerFast) -> None:
    typed = copy.deepcopy(plain)
    typed.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    model = small_model("xlnet")
    with torch.no_grad():
        for layer in model.transformer.layer:
            layer.rel_attn.seg_embed.normal_(0, 5)
            layer.rel_attn.r_s_bias.normal_(0, 5)
    tokens = typed(TEXTS[:1], return_tensors="pt")
    tokens["token_type_ids"][0, -1] = 2
    encoded = {name: values[0].tolist() for name, values in tokens.items()}
    mask = [1, *[0] * (len(encoded["input_ids"]) - 2), 1]
    encoder = Encoder(model, typed, [{**encoded, "special_tokens_mask": mask}])
    batch = encoder.batch([{**encoded, "special_tokens_mask": mask}])
    encoder.scorer.extras = batch.extras
    with torch.no_grad():
        torch.testing.assert_close(encoder.scorer(batch.inputs), model(**tokens).logits)
        del tokens["token_type_ids"]
        assert not torch.allclose(encoder.scorer(batch.inputs), model(**tokens).logits)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("canine", "has no word embeddings that take the tokens of a text as they are"),
        ("reformer", "cannot be run with gradients on the input_ids, attention_mask of a text"),
    ],
)
def test_a_family_that_cannot_be_attributed_says_why(
    family: str, message: str, plain: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=message):
        embed_text(small_model(family), plain, TEXTS, name="t")


def test_a_model_that_reads_its_tokens_elsewhere_too_is_refused(
    plain: PreTrainedTokenizerFast,
) -> None:
    class TwoPaths(BertForSequenceClassification):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            output = super().forward(input_ids, attention_mask)
            if not torch.is_grad_enabled():
                output.logits = output.logits + 1
            return output

    model = TwoPaths(small_config("bert"))
    with pytest.raises(ValueError, match="gives other logits when it is handed the word embed"):
        embed_text(model, plain, TEXTS, name="t")


# Their libraries are not here, transformers cannot make them small, or small ones say nothing.
NOT_MADE = {"layoutlmv2", "t5gemma2", "zamba", "mra"}


@pytest.mark.slow
# MRA answers alike whatever so short a text says, which is refused.
@pytest.mark.parametrize("family", sorted({*FAMILIES} - NOT_MADE - {"canine", "reformer", "mra"}))
def test_every_family_is_what_its_definition_says(
    family: str, plain: PreTrainedTokenizerFast
) -> None:
    tolerance = 1e-3 if family in SINGLE else TOLERANCE
    assert worst_difference(small_model(family), plain) < tolerance
