"""Draw the pictures of docs/ as SVG: python docs/pictures.py [FOLDER]"""

from __future__ import annotations

import sys
from pathlib import Path

from drawing import FAINT, GATE, LEAVE, LORA, PALE, SHARED, WHITE, arrow, box, circle, dashes, document, label
from picture import idea

TOKENS = {"a": 1, "b": 1, "c": 2, "d": 1, "e": 2}  # a reply of five tokens, and the loop each leaves after
RULES = {  # rule: what it says of a token that left, and how the depth it skipped is drawn
    "exact": ("loop 2 was run for a, b and d later", "later", SHARED, False),
    "propagate": ("a, b and d: computed from the state they left with", "K, V only", GATE, False),
    "latest": ("a, b and d: those of loop 1 are read", "as below", PALE, True),
    "skip": ("a, b and d: not seen", "", WHITE, True),
}


def block() -> str:
    """Which layers share a layer of the block, and what becomes of what they differ by."""
    parts = [label(90, 26, "pretrained", 14), label(385, 26, "block, stored once", 14)]
    parts += [label(680, 26, "what sharing lost, cut to rank r", 14)]
    for layer in range(6):
        y = 212 - 32 * layer
        parts += [box(30, y, 120, 24, LORA[layer // 3], f"layer {layer + 1}")]
    for layer in range(3):
        y = 212 - 64 * layer
        parts += [box(310, y, 150, 40, SHARED, f"layer {layer + 1}: mean of {layer + 1} and {layer + 4}")]
        for loop in range(2):
            from_y = 224 - 32 * (layer + 3 * loop)
            parts += [arrow(f"M 152 {from_y} C 230 {from_y} 230 {y + 20} 304 {y + 20}", LORA[loop])]
            x = 580 + 105 * loop
            parts += [box(x, y + 8, 95, 24, LORA[loop], f"{layer + 1 + 3 * loop} - mean")]
    parts += [label(627, 268, "LoRA of loop 1", 12), label(732, 268, "LoRA of loop 2", 12)]
    parts += [arrow("M 466 168 H 570"), label(518, 158, "SVD")]
    parts += [label(90, 268, "6 layers"), label(385, 268, "3 layers, run twice")]
    return document(820, 290, parts)


def linear() -> str:
    """A linear layer of the block: the shared weight, and the adapter of the depth that runs."""
    parts = [label(60, 60, "x", 16), arrow("M 74 55 H 176"), arrow("M 110 55 V 155 H 176")]
    parts += [box(180, 20, 240, 70, SHARED, "W, shared by all loops"), arrow("M 422 55 H 496")]
    parts += [box(180, 136, 96, 38, LORA[0], "A of loop 1"), box(324, 136, 96, 38, LORA[0], "B of loop 1")]
    parts += [arrow("M 278 155 H 320"), label(299, 128, "r numbers", 11), arrow("M 422 155 H 514 V 74")]
    parts += [box(180, 196, 96, 38, WHITE, "A of loop 2", True), box(324, 196, 96, 38, WHITE, "B of loop 2", True)]
    parts += [dashes("M 110 155 V 215 H 176"), dashes("M 278 215 H 322")]
    parts += [circle(514, 55, 16, "+"), arrow("M 532 55 H 604"), label(616, 60, "y", 16)]
    parts += [label(530, 160, "while loop 1 runs", 12, "start", LEAVE)]
    parts += [label(530, 220, "rests until loop 2", 12, "start", FAINT)]
    return document(700, 254, parts)


def fitted() -> str:
    """Conversion with texts: the adapters of a layer are chosen on the inputs that the layers made so far give."""
    parts = [label(20, 66, "source", 14, "start"), label(20, 196, "made from it", 14, "start")]
    parts += [label(150, 66, "texts", 13), label(150, 196, "the same", 13)]
    for layer in range(3):
        x = 220 + 190 * layer
        for y in (42, 172):
            parts += [arrow(f"M {x - (38 if layer == 0 else 68)} {y + 20} H {x - 4}")]
        parts += [box(x, 42, 120, 40, LORA[layer // 2], f"layer {layer + 1}"), box(x, 172, 120, 40, SHARED, "W + B A")]
        parts += [label(x + 60, 232, f"loop {layer // 2 + 1}, layer {layer % 2 + 1}", 11, "middle", FAINT)]
    parts += [arrow("M 660 166 V 88", LEAVE), label(674, 122, "A and B lose least", 12, "start", LEAVE)]
    parts += [label(674, 140, "of its output", 12, "start", LEAVE)]
    parts += [dashes("M 565 66 V 188"), label(552, 126, "what differs here by now", 11, "end", FAINT)]
    parts += [label(552, 142, "is made good as well", 11, "end", FAINT)]
    return document(820, 250, parts)


def exit_gate() -> str:
    """The way of a token: it leaves where the gate is sure enough."""
    parts = [box(20, 60, 90, 40, PALE, "embedding"), arrow("M 112 80 H 156")]
    parts += [box(160, 50, 110, 60, LORA[0], "block, loop 1"), arrow("M 272 80 H 316")]
    parts += [box(320, 60, 110, 40, GATE, "gate >= T ?"), arrow("M 432 80 H 516"), label(472, 70, "no")]
    parts += [box(520, 50, 110, 60, LORA[1], "block, loop 2"), arrow("M 632 80 H 676")]
    parts += [arrow("M 375 102 V 156", LEAVE), label(390, 134, "yes", 12, "start", LEAVE)]
    parts += [box(320, 160, 110, 40, PALE, "norm, LM head"), arrow("M 432 180 H 476")]
    parts += [box(680, 60, 110, 40, PALE, "norm, LM head"), arrow("M 735 102 V 166")]
    parts += [label(486, 185, "next token", 13, "start"), label(735, 185, "next token", 13)]
    parts += [label(375, 40, "chance that loop 2 would say the same"), label(735, 40, "the last loop always leaves")]
    return document(830, 220, parts)


def kv_rules() -> str:
    """What loop 2 of token e finds of the tokens in front, under each rule."""
    parts: list[str] = []
    for index, (rule, (told, mark, fill, dashed)) in enumerate(RULES.items()):
        x, y = 30 + 410 * (index % 2), 20 + 150 * (index // 2)
        parts += [label(x, y + 16, rule, 14, "start"), label(x + 84, y + 16, told, 11, "start", FAINT)]
        parts += [label(x + 40, y + 53, "loop 2", 11, "end"), label(x + 40, y + 87, "loop 1", 11, "end")]
        for column, (token, depth) in enumerate(TOKENS.items()):
            left = x + 54 + 62 * column
            deep = box(left, y + 38, 54, 24, LORA[1]) if depth == 2 else box(left, y + 38, 54, 24, fill, mark, dashed)
            parts += [deep, box(left, y + 72, 54, 24, LORA[0]), label(left + 27, y + 114, token, 13)]
    return document(840, 312, parts)


def passes(deferred: bool, early: bool = True) -> list[tuple[int, str]]:
    """The passes through the block that the reply takes, as (loop, rows).

    `deferred`: tokens that left go along when a later one goes deeper; `early`: tokens leave at all.
    """
    found, waiting = [], ""
    for token, depth in TOKENS.items():
        found.append((1, token))
        waiting += token
        if depth == 2 or not early:
            found.append((2, waiting if deferred else token))
            waiting = ""
    return found


def block_rows() -> str:
    """Passes and rows of the same reply at full depth, under `exact`, and where the work is saved."""
    cases = {
        "full depth": passes(deferred=False, early=False),
        "exact": passes(deferred=True),
        "latest, skip": passes(deferred=False),
    }
    parts: list[str] = []
    for index, (name, made) in enumerate(cases.items()):
        base = 110 + 104 * index
        rows = sum(len(tokens) for _, tokens in made)
        parts += [label(20, base - 34, name, 14, "start")]
        told = f"{len(made)} passes, {rows} rows: {rows / len(TOKENS):.1f} block rows a token"
        parts += [label(20, base - 14, told, 11, "start", FAINT)]
        for column, (loop, tokens) in enumerate(made):
            for row, token in enumerate(tokens):
                parts += [box(290 + 52 * column, base - 26 * (len(tokens) - row), 44, 22, LORA[loop - 1], token)]
            parts += [label(312 + 52 * column, base + 12, f"loop {loop}", 10, "middle", FAINT)]
    return document(830, 336, parts)


def pipeline() -> str:
    """The steps of four tokens without drafts, and with drafts of which the second does not stand."""
    alone = [[(loop, token, False)] for token in "abcd" for loop in (1, 2)]
    piped = [
        [(1, "a", False)],
        [(2, "a", False), (1, "b", True)],
        [(2, "b", False), (1, "x", True)],
        [(1, "c", False)],
        [(2, "c", False), (1, "d", True)],
        [(2, "d", False)],
    ]
    after = {"a": "b", "b": "c", "c": "d", "d": "e"}
    parts: list[str] = []
    for base, name, steps in ((40, "without drafts", alone), (176, "the pipeline", piped)):
        told = f"{len(steps)} steps for 4 tokens"
        parts += [label(20, base + 12, name, 14, "start"), label(20, base + 32, told, 11, "start", FAINT)]
        parts += [label(196, base + 17, "loop 2", 11, "end"), label(196, base + 55, "loop 1", 11, "end")]
        for column, rows in enumerate(steps):
            x = 206 + 76 * column
            for loop, token, is_draft in rows:
                y = base + 38 * (2 - loop)
                fill = WHITE if token == "x" else LORA[loop - 1]
                parts += [box(x, y, 64, 28, fill, f"{token}?" if is_draft else token, is_draft)]
                if loop == 2:
                    parts += [label(x + 32, base - 8, f"says {after[token]}", 11, "middle", LEAVE)]
            parts += [label(x + 32, base + 88, f"step {column + 1}", 10, "middle", FAINT)]
    for step, told in ((2, "b stands"), (3, "x is dropped"), (5, "d stands")):
        parts += [label(206 + 76 * (step - 1) + 32, 282, told, 11, "middle", FAINT)]
    return document(830, 300, parts)


DRAWINGS = {
    "idea": idea,
    "fitted": fitted,
    "block": block,
    "linear": linear,
    "exit": exit_gate,
    "kv-rules": kv_rules,
    "block-rows": block_rows,
    "pipeline": pipeline,
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, drawing in DRAWINGS.items():
        (folder / f"{name}.svg").write_text(drawing(), "utf-8", newline="\n")


if __name__ == "__main__":
    main()
