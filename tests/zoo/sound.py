"""Architectures that hear and speak, and those that read time series."""

from __future__ import annotations

import torch
from zoo.encoders import TINY
from zoo.pairs import PAIR
from zoo.specimens import VOCABULARY, Specimen, both, noise, tokens

#: What most configs of models over raw sound call their sizes.
WAV = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
WAVE = noise(input_values=(1, 2000))
AUDIO = noise(input_values=(1, 1, 2000))

SOUNDS = [
    Specimen(
        "ASTModel",
        TINY | {"num_mel_bins": 16, "max_length": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
        noise(input_values=(1, 32, 16)),
    ),
    Specimen("Data2VecAudioModel", WAV, WAVE),
    Specimen(
        "DacModel",
        {
            "encoder_hidden_size": 8,
            "decoder_hidden_size": 16,
            "downsampling_ratios": [2, 4],
            "upsampling_ratios": [4, 2],
            "n_codebooks": 2,
            "codebook_size": 16,
            "codebook_dim": 4,
        },
        AUDIO,
    ),
    Specimen(
        "EncodecModel",
        {
            "hidden_size": 16,
            "num_filters": 4,
            "upsampling_ratios": [4, 2],
            "codebook_size": 16,
            "codebook_dim": 16,
            "target_bandwidths": [24.0],
        },
        AUDIO,
    ),
    Specimen("HubertModel", WAV, WAVE),
    Specimen(
        "MimiModel",
        {
            "hidden_size": 16,
            "num_filters": 4,
            "upsampling_ratios": [4, 2],
            "codebook_size": 16,
            "codebook_dim": 8,
            "num_quantizers": 3,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 32,
            "vector_quantization_hidden_dimension": 8,
            "upsample_groups": 16,
        },
        AUDIO,
    ),
    Specimen("SEWModel", WAV | {"squeeze_factor": 2}, WAVE),
    Specimen(
        "Speech2TextForConditionalGeneration",
        PAIR
        | {
            "input_feat_per_channel": 8,
            "conv_channels": 16,
            "max_source_positions": 50,
            "max_target_positions": 50,
        },
        both(noise(input_features=(2, 30, 8)), tokens(7, "decoder_input_ids")),
    ),
    Specimen(
        "SpeechT5HifiGan",
        {
            "model_in_dim": 8,
            "upsample_initial_channel": 16,
            "upsample_rates": [2, 2],
            "upsample_kernel_sizes": [4, 4],
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3]],
        },
        noise(spectrogram=(1, 10, 8)),
    ),
    Specimen("UniSpeechSatModel", WAV, WAVE),
    Specimen(
        "UnivNetModel",
        {
            "model_in_channels": 8,
            "model_hidden_channels": 8,
            "num_mel_bins": 8,
            "resblock_kernel_sizes": [3],
            "resblock_stride_sizes": [4],
            "resblock_dilation_sizes": [[1, 3]],
            "kernel_predictor_hidden_channels": 8,
        },
        noise(input_features=(1, 7, 8)),
    ),
    Specimen(
        "VitsModel",
        TINY
        | {
            "ffn_dim": 32,
            "flow_size": 16,
            "spectrogram_bins": 9,
            "duration_predictor_filter_channels": 16,
            "prior_encoder_num_flows": 2,
            "posterior_encoder_num_wavenet_layers": 2,
            "upsample_initial_channel": 16,
            "upsample_rates": [2, 2],
            "upsample_kernel_sizes": [4, 4],
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3]],
            "depth_separable_channels": 2,
        },
        tokens(),
    ),
    Specimen("Wav2Vec2ForCTC", WAV, WAVE),
    Specimen("Wav2Vec2BertModel", TINY | {"feature_projection_input_dim": 8}, noise(input_features=(1, 20, 8))),
    Specimen("Wav2Vec2ConformerModel", WAV, WAVE),
    Specimen("WavLMModel", WAV, WAVE),
    Specimen(
        "WhisperForConditionalGeneration",
        PAIR
        | {"num_mel_bins": 8, "max_source_positions": 30, "max_target_positions": 40, "decoder_start_token_id": 3},
        both(noise(input_features=(2, 8, 60)), tokens(7, "decoder_input_ids")),
    ),
]

SERIES = {
    "prediction_length": 4,
    "context_length": 8,
    "lags_sequence": [1, 2],
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_time_features": 2,
}


def series():
    """Make a past and a future."""
    return noise(
        past_values=(2, 10), past_time_features=(2, 10, 2), future_values=(2, 4), future_time_features=(2, 4, 2)
    )() | {"past_observed_mask": torch.ones(2, 10)}


TIMES = [
    Specimen("AutoformerForPrediction", SERIES | {"label_length": 4, "moving_average": 3}, series),
    Specimen(
        "DecisionTransformerModel",
        {"state_dim": 3, "act_dim": 2, "hidden_size": 16, "n_layer": 2, "n_head": 2, "max_ep_len": 20},
        both(noise(states=(1, 4, 3), actions=(1, 4, 2), returns_to_go=(1, 4, 1)), timesteps=torch.arange(4)[None]),
    ),
    Specimen("InformerForPrediction", SERIES, series),
    Specimen(
        "PatchTSMixerForPrediction",
        {
            "context_length": 16,
            "patch_length": 4,
            "patch_stride": 4,
            "num_input_channels": 2,
            "d_model": 16,
            "num_layers": 2,
            "prediction_length": 4,
        },
        noise(past_values=(2, 16, 2)),
    ),
    Specimen(
        "PatchTSTModel",
        {
            "context_length": 16,
            "patch_length": 4,
            "patch_stride": 4,
            "num_input_channels": 2,
            "d_model": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 32,
        },
        noise(past_values=(2, 16, 2)),
    ),
    Specimen("TimeSeriesTransformerForPrediction", SERIES, series),
]
