"""The documents' systems, trained and judged on data: `python -m hybridops systems`.

A system is a module here with `run(options) -> list[Row]`, which trains it and says what it reached, and
`speed(options) -> list[Speed]`, which times its steps, plain against fused (see table.py).
"""

from __future__ import annotations

SYSTEMS = {  # name: what it is
    "multimodal": "a sequence and an image classified together: who speaks, and whose digit is shown (document 003)",
    "question_answering": "questions about images, by seven fusions (document 002)",
    "translation": "sequence to sequence with attention: the pronunciation of English words (document 001)",
    "captioning": "captions of drawn scenes, from one vector, regions, objects and their graph (documents 002, 004)",
    "self_critical": "captions rewarded by CIDEr-D (document 002)",
    "training_strategies": "several tasks, a curriculum, frozen stages, a pretrained decoder (document 002)",
    "ablations": "captioners without one part, or with another in its place (document 002)",
    "verses": "sequence to sequence with attention: English verses into Spanish (document 001)",
    "stamps": "captions of pictures, seen by a pretrained network (documents 002 and 004)",
    "sentiment": "film reviews, good or bad: CNN-RNN and BiLSTM (documents 000 and 004)",
    "music": "the next note of Bach's chorales, and melodies (document 004)",
    "memory": "a Neural Turing Machine: lists longer than any it was trained on, of bits and of images (document 002)",
    "video": "clips classified by what is seen and how it moves, from frames, flow and segments (document 002)",
    "video_transformers": "which way a digit drifts: Vision Transformer, space-time attention, graphs (document 002)",
    "anomalies": "steps of a series that an LSTM did not forecast (document 004)",
    "video_forecasting": "the next frames of digits, films and a climate model, by ConvLSTMs",
    "video_captioning": "captions of films, from the mean, from frames, from shots and frames (document 002)",
    "video_question_answering": "questions about films, by temporal attention (document 002)",
}
