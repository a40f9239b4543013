"""The README's picture, idea.svg: from a pretrained model to a recursive one that runs."""

from __future__ import annotations

from drawing import LEAVE, LORA, PALE, SHARED, WHITE, arrow, box, document, label


def source() -> list[str]:
    """The pretrained model: twelve layers of its own."""
    layers = [box(40, 262 - 20 * index, 130, 16, PALE, f"layer {index + 1}") for index in range(12)]
    return [label(105, 26, "pretrained", 14), *layers, label(105, 306, "12 layers stored")]


def recursive() -> list[str]:
    """The recursive model: six layers, run twice, an adapter for each depth, an exit between."""
    parts = [
        label(440, 26, "recursive", 14),
        arrow("M 185 160 H 260"),
        label(222, 150, "convert"),
        label(222, 178, "train"),
    ]
    for index in range(6):
        y = 212 - 26 * index
        parts += [box(300, y, 110, 20, SHARED, f"layer {index + 1}")]
        parts += [box(418 + 44 * depth, y, 38, 20, LORA[depth], "LoRA") for depth in range(2)]
    parts += [label(437, 250, "loop 1", 11), label(481, 250, "loop 2", 11)]
    parts += [arrow("M 300 76 C 262 76 262 226 296 226"), label(262, 62, "again", 11)]
    parts += [
        label(400, 276, "6 layers stored once, a small LoRA for each loop"),
        label(400, 306, "one ONNX graph with a Loop"),
    ]
    return parts


def reply() -> list[str]:
    """What runs: easy tokens leave after the first loop."""
    words = [("Join", 2), ("two", 2), ("or", 1), ("more", 1), ("path", 2), ("name", 1), ("components", 1), (".", 1)]
    parts = [label(710, 26, "running", 14), arrow("M 525 160 H 590"), label(558, 150, "export")]
    for index, (word, depth) in enumerate(words):
        y = 44 + 28 * index
        parts += [label(690, y + 15, word, 13, "end")]
        parts += [box(704 + 44 * loop, y, 38, 20, LORA[loop] if loop < depth else WHITE) for loop in range(2)]
        if depth == 1:
            parts += [label(752, y + 15, "leaves", 11, "start", LEAVE)]
    return [
        *parts,
        label(710, 290, "the exit gate decides, token by token"),
        label(710, 306, "keys and values stay exact"),
    ]


def idea() -> str:
    return document(860, 330, [*source(), *recursive(), *reply()])
