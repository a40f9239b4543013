"""A bundle that thinks before it answers: each of its tokens says which comes next, at every depth.

The layers add nothing, so that the head sees the embedding of the last token alone, and has been given the next one's.
Importing this skips where torch is missing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from tests.manifests import replace_file

torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[dev]'")

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from rrt_edge.exporters import export  # noqa: E402
from tests.checkpoints import tiny_config, write_recursive  # noqa: E402

THOUGHT, ANSWER = "Hm, a cat or not? Yes.", "Two cats see hens."
END, START, USER = "</s>", "<assistant>", "<user>"
MARKERS = ("<think>", "\n", "</think>", "\n\n")
PARTS = ("<thi", "nk>\n", "</th", "ink>\n\n")  # the markers and what stands behind them, as ordinary tokens
SAID = ("Hm,", " a", " cat", " or", " not?", " Yes.\n"), ("Two", " cats", " see", " hens", ".")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if preserve_thinking and m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}</s>{% endfor %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
OPENING = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant><think>{{ '\\n' }}"
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = len(LETTERS) + 60


def reply_tokens(markers: tuple[str, str, str, str]) -> list[str]:
    """The tokens of a whole reply, in order."""
    thought, answer = SAID
    return [*markers[:2], *thought, *markers[2:], *answer]


def make_tokenizer(markers: tuple[str, str, str, str] = MARKERS, special: bool = False) -> Tokenizer:
    """Single bytes, the tokens of the reply, and those between turns."""
    return tokenizer_of((END, USER, START), reply_tokens(markers), ("<think>", "</think>") if special else ())


def tokenizer_of(between: Sequence[str], said: Sequence[str], special: Collection[str] = ()) -> Tokenizer:
    """Single bytes, tokens between turns, and those of replies, some of which are special."""
    tokenizer = Tokenizer(models.BPE({letter: id for id, letter in enumerate(LETTERS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevel()
    tokenizer.add_special_tokens(list(between))
    for text in said:
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=text in special)])
    return tokenizer


def write_thinker(folder: Path) -> None:
    """The bundle, whose markers are ordinary tokens of its vocabulary as in Qwen3's; three loops."""
    write_scripted(folder, make_tokenizer(), [[START, *reply_tokens(MARKERS), END]], TEMPLATE)


def write_scripted(folder: Path, tokenizer: Tokenizer, scripts: Sequence[Sequence[str]], template: str) -> None:
    """A bundle in which each token of some scripts, in which none stands twice but for the end, leads to the next."""
    ids = [[tokenizer.token_to_id(text) for text in script] for script in scripts]
    fields = {"vocab_size": VOCABULARY, "hidden_size": 144, "num_hidden_layers": 3, "tie_word_embeddings": False}
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(**fields, eos_token_id=ids[0][-1], pad_token_id=None))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.normal_()
        head.zero_()
        for script in ids:
            head[script[1:]] += embedding[script[:-1]]
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(Path(place, "source"))
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
        fast.chat_template = template
        fast.save_pretrained(Path(place, "source"))
        write_recursive(Path(place, "source"), Path(place, "recursive"))
        export(Path(place, "recursive"), folder, bits=32)


def changed(bundle: Path, folder: Path, tokenizer: Tokenizer | None = None, template: str | None = None) -> Path:
    """A copy of a bundle with another tokenizer or template."""
    shutil.copytree(bundle, folder)
    if tokenizer is not None:
        replace_file(folder, "tokenizer.json", tokenizer.to_str().encode())
    if template is not None:
        replace_file(folder, "chat_template.jinja", template.encode())
    return folder
