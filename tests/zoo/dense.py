"""Architectures that say what is where in an image: detectors, segmenters, depth, poses, key points."""

from __future__ import annotations

import torch
from zoo.specimens import Specimen, both, pixels
from zoo.vision import IMAGE, RESNET, SWIN, VIT

SWIN4 = SWIN | {"model_type": "swin", "depths": [1] * 4, "num_heads": [2] * 4}
RT_RESNET = {
    "model_type": "rt_detr_resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
#: What detectors with an encoder and a decoder call their sizes.
DETR = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 5,
}

DENSE = [
    Specimen(
        "DeformableDetrForObjectDetection",
        DETR
        | {
            "d_model": 32,
            "decoder_layers": 2,
            "backbone_config": RESNET | {"model_type": "resnet", "out_features": ["stage1", "stage2"]},
            "num_feature_levels": 2,
        },
        pixels(64),
    ),
    Specimen(
        "DepthAnythingForDepthEstimation",
        {
            "backbone_config": VIT
            | {"model_type": "dinov2", "out_features": ["stage1", "stage2"], "reshape_hidden_states": False},
            "patch_size": 8,
            "reassemble_hidden_size": 16,
            "reassemble_factors": [2, 1],
            "neck_hidden_sizes": [8, 8],
            "fusion_hidden_size": 8,
            "head_hidden_size": 8,
        },
        IMAGE,
    ),
    Specimen(
        "DetrForObjectDetection",
        DETR
        | {
            "backbone_config": RESNET | {"model_type": "resnet", "out_features": ["stage2"]},
            "use_timm_backbone": False,
            "backbone": None,
        },
        pixels(64),
    ),
    Specimen(
        "DPTForDepthEstimation",
        VIT
        | {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8] * 4,
            "fusion_hidden_size": 8,
            "is_hybrid": False,
            "backbone_config": None,
        },
        IMAGE,
    ),
    Specimen(
        "GLPNForDepthEstimation",
        {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8},
        IMAGE,
    ),
    Specimen(
        "Mask2FormerForUniversalSegmentation",
        {
            "backbone_config": SWIN4 | {"out_features": ["stage1", "stage2", "stage3", "stage4"]},
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32,
            "dim_feedforward": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_attention_heads": 2,
            "num_queries": 5,
        },
        pixels(64),
    ),
    Specimen(
        "RTDetrForObjectDetection",
        DETR
        | {
            "backbone_config": RT_RESNET,
            "encoder_hidden_dim": 16,
            "encoder_in_channels": [16, 16, 16],
            "decoder_in_channels": [16, 16, 16],
            "num_denoising": 0,
            "anchor_image_size": None,
        },
        pixels(64),
    ),
    Specimen(
        "SamModel",
        {
            "vision_config": {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 64,
                "patch_size": 16,
                "mlp_dim": 32,
                "output_channels": 16,
                "window_size": 2,
                "global_attn_indexes": [1],
                "num_pos_feats": 8,
            },
            "prompt_encoder_config": {
                "hidden_size": 16,
                "image_size": 64,
                "patch_size": 16,
                "mask_input_channels": 4,
            },
            "mask_decoder_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "mlp_dim": 32,
                "iou_head_hidden_dim": 16,
            },
        },
        both(pixels(64), input_points=torch.tensor([[[[10.0, 20.0]]]])),
    ),
    Specimen(
        "SuperPointForKeypointDetection",
        {"encoder_hidden_sizes": [8, 8, 8, 8], "decoder_hidden_size": 16, "descriptor_decoder_dim": 16},
        pixels(64),
    ),
    Specimen(
        "Swin2SRForImageSuperResolution",
        {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "upscale": 2},
        IMAGE,
    ),
    Specimen(
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": SWIN | {"model_type": "swin", "out_features": ["stage1", "stage2"]},
            "hidden_size": 8,
            "pool_scales": [1, 2],
            "use_auxiliary_head": False,
        },
        pixels(64),
    ),
    Specimen(
        "VitMatteForImageMatting",
        {
            "backbone_config": VIT
            | {"model_type": "vitdet", "patch_size": 16, "num_channels": 4, "out_features": ["stage2"]},
            "hidden_size": 16,
            "convstream_hidden_sizes": [8, 8, 8],
            "fusion_hidden_sizes": [8, 8, 8, 8],
        },
        pixels(channels=4),
    ),
    Specimen(
        "VitPoseForPoseEstimation",
        {
            "backbone_config": VIT
            | {
                "model_type": "vitpose_backbone",
                "image_size": [32, 32],
                "patch_size": [8, 8],
                "out_features": ["stage2"],
            },
            "num_labels": 3,
        },
        IMAGE,
    ),
    Specimen("YolosForObjectDetection", VIT | {"image_size": [32, 32], "num_detection_tokens": 5}, IMAGE),
    Specimen(
        "ZoeDepthForDepthEstimation",
        {
            "backbone_config": VIT
            | {
                "model_type": "beit",
                "num_hidden_layers": 4,
                "out_indices": [1, 2, 3, 4],
                "reshape_hidden_states": False,
            },
            "neck_hidden_sizes": [8] * 4,
            "fusion_hidden_size": 8,
            "bottleneck_features": 8,
        },
        IMAGE,
    ),
]
