"""Architectures that join kinds of input, or are put together from other architectures."""

from __future__ import annotations

import torch
from zoo.decoders import GROUPED
from zoo.encoders import TINY, WORDS, boxes
from zoo.pairs import T5
from zoo.sound import WAV
from zoo.specimens import VOCABULARY, Specimen, both, noise, pixels, tokens
from zoo.vision import SWIN, VIT

READ = both(WORDS, pixels())
CLIP = {"text_config": TINY, "vision_config": VIT, "projection_dim": 16}
BLIP_TEXT = TINY | {"encoder_hidden_size": 16, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 3}
IMAGE_TOKEN = 4


def asked(count: int):
    """Make words among which so many places are the image's."""

    def make():
        ids = WORDS()["input_ids"][:1]
        return {"input_ids": torch.cat([torch.full((1, count), IMAGE_TOKEN), ids], dim=1)} | pixels()()

    return make


def qwen():
    """Make an image in patches, as Qwen wants it."""
    return (
        asked(4)()
        | noise(pixel_values=(16, 3 * 2 * 8 * 8))()
        | {"image_grid_thw": torch.tensor([[1, 4, 4]]), "mm_token_type_ids": torch.tensor([[1] * 4 + [0] * 7])}
    )


def pages():
    """Make patches of a rendered page, each headed by its row and column."""
    content = noise(content=(2, 5, 12))()["content"]
    place = torch.arange(1.0, 6.0).expand(2, 5)[..., None]
    return {"flattened_patches": torch.cat([place, place, content], dim=-1)}


MULTIMODAL = [
    Specimen(
        "AltCLIPModel",
        {"text_config": TINY | {"project_dim": 16, "pad_token_id": 1}, "vision_config": VIT, "projection_dim": 16},
        READ,
    ),
    Specimen(
        "BlipForConditionalGeneration",
        {"text_config": BLIP_TEXT, "vision_config": VIT, "projection_dim": 16},
        both(tokens(7), pixels(batch=2)),
    ),
    Specimen(
        "Blip2Model",
        {
            "text_config": TINY | {"model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 16},
            "vision_config": VIT,
            "qformer_config": TINY | {"encoder_hidden_size": 16},
            "num_query_tokens": 3,
            "image_token_index": IMAGE_TOKEN,
        },
        asked(3),
    ),
    Specimen(
        "BridgeTowerModel",
        {
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "text_config": TINY | {"hidden_size": 64},
            "vision_config": {"hidden_size": 64, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        },
        both(WORDS, pixels(batch=2)),
    ),
    Specimen("ChineseCLIPModel", CLIP, READ),
    Specimen(
        "ClapModel",
        {
            "text_config": TINY,
            "audio_config": {
                "patch_embeds_hidden_size": 8,
                "hidden_size": 16,
                "depths": [1, 1],
                "num_attention_heads": [2, 2],
                "num_mel_bins": 8,
                "spec_size": 32,
                "window_size": 4,
                "patch_size": 4,
                "patch_stride": [4, 4],
            },
            "projection_dim": 16,
        },
        both(WORDS, noise(input_features=(1, 1, 60, 8))),
    ),
    Specimen("CLIPModel", CLIP, READ),
    Specimen(
        "CLIPSegForImageSegmentation",
        CLIP
        | {
            "extract_layers": [0, 1],
            "reduce_dim": 16,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
        },
        both(WORDS, pixels(batch=2)),
    ),
    Specimen(
        "FlavaModel",
        {
            "text_config": TINY,
            "image_config": VIT,
            "multimodal_config": {k: v for k, v in VIT.items() if "size" in k or "num" in k},
            "hidden_size": 16,
        },
        both(WORDS, pixels(batch=2)),
    ),
    Specimen("GitModel", TINY | {"vision_config": VIT}, both(WORDS, pixels(batch=2))),
    Specimen(
        "GroupViTModel",
        {
            "text_config": TINY,
            "vision_config": VIT | {"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 2]},
            "projection_dim": 16,
        },
        READ,
    ),
    Specimen(
        "Idefics3Model",
        {
            "text_config": GROUPED | {"model_type": "llama"},
            "vision_config": VIT,
            "scale_factor": 2,
            "image_token_id": IMAGE_TOKEN,
        },
        both(asked(4), noise(pixel_values=(1, 1, 3, 32, 32))),
    ),
    Specimen(
        "LayoutLMv3Model",
        TINY
        | {
            "input_size": 32,
            "patch_size": 8,
            "coordinate_size": 4,
            "shape_size": 2,
            "hidden_size": 20,
            "num_attention_heads": 2,
        },
        both(boxes, pixels(batch=2)),
    ),
    Specimen(
        "LlavaForConditionalGeneration",
        {
            "text_config": GROUPED | {"model_type": "llama"},
            "vision_config": VIT | {"model_type": "clip_vision_model"},
            "image_token_index": IMAGE_TOKEN,
        },
        asked(16),
    ),
    Specimen(
        "LxmertModel",
        TINY | {"l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 8},
        both(WORDS, noise(visual_feats=(2, 3, 8), visual_pos=(2, 3, 4))),
    ),
    Specimen("OwlViTForObjectDetection", CLIP, both(WORDS, pixels())),
    Specimen(
        "PaliGemmaForConditionalGeneration",
        {
            "text_config": GROUPED | {"model_type": "gemma"},
            "vision_config": VIT | {"model_type": "siglip_vision_model"},
            "image_token_index": IMAGE_TOKEN,
            "projection_dim": 16,
            "hidden_size": 16,
        },
        asked(16),
    ),
    Specimen(
        "PerceiverForMaskedLM",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "d_latents": 16,
            "num_latents": 4,
            "num_self_attends_per_block": 1,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "qk_channels": 16,
            "v_channels": 16,
            "max_position_embeddings": 8,
        },
        tokens(8, "inputs"),
    ),
    Specimen(
        "Pix2StructForConditionalGeneration",
        {
            "text_config": {
                "vocab_size": VOCABULARY,
                "hidden_size": 16,
                "d_kv": 8,
                "d_ff": 32,
                "num_layers": 2,
                "num_heads": 2,
                "decoder_start_token_id": 0,
            },
            "vision_config": {
                "hidden_size": 16,
                "patch_embed_hidden_size": 12,
                "d_ff": 32,
                "d_kv": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "seq_len": 10,
            },
        },
        both(pages, tokens(7, "decoder_input_ids")),
    ),
    Specimen(
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": GROUPED
            | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}},
            "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 8},
            "image_token_id": IMAGE_TOKEN,
            "vision_start_token_id": 3,
        },
        qwen,
    ),
    Specimen("SiglipModel", {"text_config": TINY | {"projection_size": 16}, "vision_config": VIT}, READ),
    Specimen(
        "UdopForConditionalGeneration",
        T5 | {"image_size": 32, "patch_size": 8, "max_2d_position_embeddings": 128},
        both(
            lambda: {"input_ids": WORDS()["input_ids"], "bbox": boxes()["bbox"] / 128.0},
            pixels(batch=2),
            tokens(7, "decoder_input_ids"),
        ),
    ),
    Specimen("ViltModel", VIT | TINY, both(WORDS, pixels(batch=2))),
    Specimen("VisualBertModel", TINY | {"visual_embedding_dim": 8}, both(WORDS, noise(visual_embeds=(2, 3, 8)))),
    Specimen(
        "XCLIPModel",
        CLIP
        | {
            "prompt_layers": 1,
            "prompt_num_attention_heads": 2,
            "vision_config": VIT
            | {"num_frames": 2, "mit_hidden_size": 16, "mit_intermediate_size": 32, "mit_num_attention_heads": 2},
        },
        both(WORDS, noise(pixel_values=(1, 2, 3, 32, 32))),
    ),
]


#: The decoder of a pair.
TELLER = TINY | {"model_type": "bert", "is_decoder": True, "add_cross_attention": True}

COMPOSED = [
    Specimen(
        "EncoderDecoderModel",
        {"encoder": TINY | {"model_type": "roberta"}, "decoder": TELLER},
        tokens(7, "input_ids", "decoder_input_ids"),
    ),
    Specimen(
        "SpeechEncoderDecoderModel",
        {"encoder": WAV | {"model_type": "wav2vec2"}, "decoder": TELLER},
        both(noise(inputs=(2, 2000)), tokens(7, "decoder_input_ids")),
    ),
    Specimen(
        "VisionEncoderDecoderModel",
        {"encoder": SWIN | {"model_type": "swin"}, "decoder": TELLER},
        both(pixels(batch=2), tokens(7, "decoder_input_ids")),
    ),
    Specimen(
        "VisionTextDualEncoderModel",
        {
            "vision_config": VIT | {"model_type": "vit"},
            "text_config": TINY | {"model_type": "bert"},
            "projection_dim": 16,
        },
        READ,
    ),
]
