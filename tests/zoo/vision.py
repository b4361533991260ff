"""Architectures that see: classifiers and backbones of images and of films."""

from __future__ import annotations

from zoo.specimens import Specimen, noise, pixels

#: What most configs of vision transformers call their sizes.
VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
RESNET = STAGES | {"embedding_size": 8, "layer_type": "basic"}
VIDEO = VIT | {"num_frames": 2}

IMAGE = pixels()
FRAMES = noise(pixel_values=(1, 2, 3, 32, 32))


CLASSIFIERS = [
    Specimen("BeitForImageClassification", VIT | {"use_relative_position_bias": True}, IMAGE),
    Specimen("BitModel", STAGES | {"embedding_size": 8, "num_groups": 2}, IMAGE),
    Specimen("ConvNextModel", STAGES | {"num_stages": 2}, IMAGE),
    Specimen("ConvNextV2ForImageClassification", STAGES | {"num_stages": 2}, IMAGE),
    Specimen(
        "CvtModel",
        {"embed_dim": [8, 8, 16], "num_heads": [1, 1, 2], "depth": [1, 2, 3], "cls_token": [False, False, True]},
        IMAGE,
    ),
    Specimen("Data2VecVisionModel", VIT, IMAGE),
    Specimen("DeiTForImageClassificationWithTeacher", VIT, IMAGE),
    Specimen("Dinov2Model", VIT, IMAGE),
    Specimen("Dinov2WithRegistersBackbone", VIT | {"out_features": ["stage1", "stage2"]}, IMAGE),
    Specimen("DINOv3ViTModel", VIT, IMAGE),
    Specimen(
        "EfficientNetModel",
        {
            "image_size": 32,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.25,
            "hidden_dim": 320,
            "initializer_range": 0.5,
        },
        IMAGE,
    ),
    Specimen(
        "FocalNetModel",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 8,
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
            "hidden_sizes": [8, 16],
        },
        IMAGE,
    ),
    Specimen(
        "HieraModel",
        {
            "image_size": [32, 32],
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "patch_stride": [4, 4],
            "patch_size": [7, 7],
            "patch_padding": [3, 3],
            "masked_unit_size": [8, 8],
            "query_stride": [2, 2],
            "num_query_pool": 1,
        },
        IMAGE,
    ),
    Specimen(
        "LevitForImageClassification",
        {
            "image_size": 32,
            "hidden_sizes": [16, 16, 16],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        IMAGE,
    ),
    Specimen("MobileNetV1Model", {"depth_multiplier": 0.25, "min_depth": 4}, IMAGE),
    Specimen("MobileNetV2ForImageClassification", {"depth_multiplier": 0.25, "min_depth": 4}, IMAGE),
    Specimen(
        "MobileViTModel",
        {
            "image_size": 32,
            "patch_size": 2,
            "hidden_sizes": [8, 8, 8],
            "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 16],
            "initializer_range": 0.5,
            "num_attention_heads": 2,
        },
        IMAGE,
    ),
    Specimen(
        "MobileViTV2Model",
        {"width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "initializer_range": 0.5},
        pixels(64),
    ),
    Specimen(
        "PoolFormerModel",
        {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1], "patch_size": 3, "stride": 2},
        IMAGE,
    ),
    Specimen(
        "PvtV2Model",
        {"hidden_sizes": [8, 8, 8, 16], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]},
        IMAGE,
    ),
    Specimen("RegNetModel", RESNET | {"layer_type": "y", "groups_width": 4}, IMAGE),
    Specimen("ResNetForImageClassification", RESNET, IMAGE),
    Specimen(
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8},
        IMAGE,
    ),
    Specimen("SwiftFormerModel", {"image_size": 32, "embed_dims": [8, 8, 16, 16], "depths": [1] * 4}, IMAGE),
    Specimen("SwinModel", SWIN, IMAGE),
    Specimen("Swinv2ForImageClassification", SWIN, IMAGE),
    Specimen("ViTForImageClassification", VIT, IMAGE),
    Specimen(
        "ViTMAEForPreTraining",
        VIT
        | {
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
        },
        IMAGE,
    ),
    Specimen("ViTMSNModel", VIT, IMAGE),
]

VIDEOS = [
    Specimen("TimesformerModel", VIDEO, FRAMES),
    Specimen("VideoMAEModel", VIDEO | {"tubelet_size": 2}, FRAMES),
    Specimen("VivitModel", VIDEO | {"tubelet_size": [2, 8, 8]}, FRAMES),
    Specimen(
        "VJEPA2Model",
        VIT
        | {
            "crop_size": 32,
            "frames_per_clip": 2,
            "pred_hidden_size": 16,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 1,
        },
        noise(pixel_values_videos=(1, 2, 3, 32, 32)),
    ),
]
