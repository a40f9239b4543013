"""llama.cpp and onnxruntime-genai, each in a process of its own: `peers.py` starts this file in their environment.

    python benchmarks/peer_runs.py llama_cpp|genai MODEL '{"threads": 2, "vocabulary": 32000, "prompt": 256, "new": 128, "tests": ["decode"]}'
    python benchmarks/peer_runs.py llama_cpp_replies MODEL '{"threads": 2, "vocabulary": 49152, "ends": [2], "drafts": false, "file": "prompts.json"}'
    python benchmarks/peer_runs.py write_gguf CHECKPOINT OUT

Tests: `decode`, `decode:x4` (so many sequences at once) and `decode:ngram` (drafts from what the text said before, by
the peer's own means). A first short run warms up. Prints one JSON object: the results of each test, in order; of
`llama_cpp_replies`, which is for `proofread_speed.py`, the replies and their seconds.
"""  # noqa: E501

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WARM_UP = 4  # tokens


class Run(NamedTuple):
    """What one test took: the prompts with their first tokens, and the tokens behind them.

    `steps`: calls of the model for `tokens`; `drafted` and `accepted`: tokens.
    """

    prompt_seconds: float
    decode_seconds: float
    tokens: int
    steps: int
    drafted: int = 0
    accepted: int = 0


Runner = Callable[[list[list[int]], int, bool], Run]


def prompts_of(vocabulary: int, tokens: int, batch: int) -> list[list[int]]:
    prompts: list[list[int]] = np.random.default_rng(0).integers(3, vocabulary, (batch, tokens)).tolist()
    return prompts


def measured(run: Runner, settings: dict[str, Any]) -> list[dict[str, float | str]]:
    """The results of the tests, one after another."""
    vocabulary, prompt, new = settings["vocabulary"], settings["prompt"], settings["new"]
    run(prompts_of(vocabulary, prompt, 1), WARM_UP, False)
    results: list[dict[str, float | str]] = []
    for test in settings["tests"]:
        option = test.partition(":")[2]
        batch = int(option[1:]) if option.startswith("x") else 1
        done = run(prompts_of(vocabulary, prompt, batch), new, option == "ngram")
        result: dict[str, float | str] = {
            "test": test,
            "decode": done.tokens / done.decode_seconds,
            "prefill": batch * prompt / done.prompt_seconds,
            "steps": done.steps / done.tokens,
            "peak": peak_memory_bytes(),
        }
        if option == "ngram":
            result["stood"] = done.accepted / max(done.drafted, 1)
        results.append(result)
    return results


def peak_memory_bytes() -> int:
    """Of this process alone: `ru_maxrss` would say what the process that started it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


def quiet_llama_cpp() -> Any:
    """llama.cpp, which tells nothing while it runs."""
    import llama_cpp

    llama_cpp.llama_log_set(_silence(), None)
    return llama_cpp


@functools.cache
def _silence() -> Any:
    """What takes llama.cpp's lines; it calls it as long as the process lives."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaCpp:
    """A GGUF file in llama.cpp, flash attention on; n-gram drafts are llama-cpp-python's prompt lookup, as it comes."""

    def __init__(self, path: str, threads: int, vocabulary: int) -> None:
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        llama_cpp = quiet_llama_cpp()
        self._llama, self._threads, self._vocabulary = llama_cpp, threads, vocabulary
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        self._lookup = LlamaPromptLookupDecoding()
        self.most_drafts: int = self._lookup.num_pred_tokens

    @contextmanager
    def context(self, tokens: int, most_rows: int, sequences: int = 1) -> Iterator[LlamaContext]:
        """Room for so many tokens of all sequences, and rows of one call."""
        llama, parameters = self._llama, self._llama.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = tokens, sequences
        parameters.n_batch = parameters.n_ubatch = most_rows
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        context, room = llama.llama_init_from_model(self._model, parameters), llama.llama_batch_init(most_rows, 0, 1)
        yield LlamaContext(llama, context, room, self._vocabulary, self._lookup)
        llama.llama_batch_free(room)
        llama.llama_free(context)


class LlamaContext:
    """What llama.cpp holds of some sequences."""

    def __init__(self, llama: Any, context: Any, room: Any, vocabulary: int, lookup: Any) -> None:
        self._llama, self._context, self._room = llama, context, room
        self._vocabulary, self._lookup = vocabulary, lookup
        self._memory = llama.llama_get_memory(context)

    def forget(self, length: int) -> None:
        """Keep so many tokens of the first sequence."""
        self._llama.llama_memory_seq_rm(self._memory, 0, length, -1)

    def feed(self, rows: list[tuple[int, int, int]], logits: int) -> list[int]:
        """The likeliest tokens behind the last `logits` of rows of token, position and sequence."""
        room = self._room
        room.n_tokens = len(rows)
        for index, (token, position, sequence) in enumerate(rows):
            room.token[index], room.pos[index] = token, position
            room.n_seq_id[index], room.seq_id[index][0] = 1, sequence
            room.logits[index] = index >= len(rows) - logits
        if self._llama.llama_decode(self._context, room):
            raise SystemExit("llama.cpp failed")
        read = (self._llama.llama_get_logits_ith(self._context, i) for i in range(len(rows) - logits, len(rows)))
        return [int(np.ctypeslib.as_array(row, shape=(self._vocabulary,)).argmax()) for row in read]

    def drafted(self, text: list[int], most: int) -> tuple[list[int], int]:
        """What follows a text of which all but the last token was fed, n-gram drafts that stood in front; and how many
        were drafted, `most` of them."""
        guess = self._lookup(np.array(text, np.intc)).tolist()[:most]
        at = len(text) - 1
        follows = self.feed([(token, at + i, 0) for i, token in enumerate([text[-1], *guess])], 1 + len(guess))
        stood = next((i for i, token in enumerate(guess) if token != follows[i]), len(guess))
        self.forget(at + stood + 1)
        return follows[: stood + 1], len(guess)


def llama_cpp(path: str, settings: dict[str, Any]) -> list[dict[str, float | str]]:
    engine = LlamaCpp(path, settings["threads"], settings["vocabulary"])

    def run(prompts: list[list[int]], new: int, drafts: bool) -> Run:
        batch, length = len(prompts), len(prompts[0])
        room = batch * (length + new + drafts * engine.most_drafts)
        with engine.context(room, max(length, batch), batch) as context:
            return replied(context, prompts, new, drafts)

    return measured(run, settings)


def replied(context: LlamaContext, prompts: list[list[int]], new: int, drafts: bool) -> Run:
    """So many new tokens behind each prompt, with n-gram drafts behind the first alone."""
    batch, length = len(prompts), len(prompts[0])
    started = time.perf_counter()
    last = [
        context.feed([(token, place, sequence) for place, token in enumerate(prompt)], 1)[0]
        for sequence, prompt in enumerate(prompts)
    ]
    middle = time.perf_counter()
    steps = drafted = accepted = tokens = 0
    if drafts:
        text = [*prompts[0], last[0]]
        while tokens < new - 1:
            follows, count = context.drafted(text, new - 2 - tokens)
            text += follows
            steps, drafted, accepted = steps + 1, drafted + count, accepted + len(follows) - 1
            tokens += len(follows)
    else:
        for steps in range(1, new):
            rows = [(token, length + steps - 1, sequence) for sequence, token in enumerate(last)]
            last = context.feed(rows, batch)
            tokens += batch
    return Run(middle - started, time.perf_counter() - middle, tokens, steps, drafted, accepted)


def llama_cpp_replies(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Greedy replies to prompts of token ids, one after another, and the seconds of them all.

    `settings` has `threads`, `vocabulary`, `ends` (token ids), `drafts` (from n-grams), and `file`: JSON, of each
    prompt its token ids and how many may follow. The first prompt is answered once more before, to warm up.
    """
    prompts = json.loads(Path(settings["file"]).read_text())
    engine, ends = LlamaCpp(path, settings["threads"], settings["vocabulary"]), set(settings["ends"])
    longest = max(len(ids) + most for ids, most in prompts)

    def reply(context: LlamaContext, ids: list[int], most: int) -> list[int]:
        context.forget(0)
        text = [*ids, *context.feed([(token, place, 0) for place, token in enumerate(ids)], 1)]
        while text[-1] not in ends and len(text) < len(ids) + most:
            if settings["drafts"]:
                follows, _ = context.drafted(text, len(ids) + most - len(text) - 1)
            else:
                follows = context.feed([(text[-1], len(text) - 1, 0)], 1)
            end = next((i + 1 for i, token in enumerate(follows) if token in ends), len(follows))
            text += follows[:end]
        return text[len(ids) :]

    with engine.context(longest + engine.most_drafts, longest) as context:
        reply(context, *prompts[0])
        started = time.perf_counter()
        replies = [reply(context, ids, most) for ids, most in prompts]
        return {"seconds": time.perf_counter() - started, "replies": replies, "peak": peak_memory_bytes()}


def genai(path: str, settings: dict[str, Any]) -> list[dict[str, float | str]]:
    """n-gram drafts are onnxruntime-genai's own."""
    import onnxruntime_genai

    config = onnxruntime_genai.Config(path)
    threads = {"intra_op_num_threads": settings["threads"]}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
    model = onnxruntime_genai.Model(config)

    def run(prompts: list[list[int]], new: int, drafts: bool) -> Run:
        batch, length = len(prompts), len(prompts[0])
        parameters = onnxruntime_genai.GeneratorParams(model)
        longest = length + new
        parameters.set_search_options(max_length=longest, min_length=longest, do_sample=False, batch_size=batch)
        if drafts:
            parameters.set_speculative_options(ngram_size=2, ngram_chained_lookup=True)
        generator = onnxruntime_genai.Generator(model, parameters)
        started = time.perf_counter()
        generator.append_tokens(np.array(prompts, np.int32))
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(new - 1):
            generator.generate_next_token()
        ended = time.perf_counter()
        prompt_seconds, decode_seconds, tokens = middle - started, ended - middle, batch * (new - 1)
        if not drafts:
            return Run(prompt_seconds, decode_seconds, tokens, new - 1)
        stats = generator.get_speculative_stats()
        steps = stats["target_forward_passes"] + stats["standard_fallback_steps"]
        drafted, accepted = stats["draft_tokens_evaluated"], stats["draft_tokens_accepted"]
        return Run(prompt_seconds, decode_seconds, tokens, steps, drafted, accepted)

    return measured(run, settings)


def write_gguf(checkpoint: str, out: str) -> None:
    """The checkpoint as GGUF, without a vocabulary, quantised to Q4_0 by llama.cpp."""
    import ctypes

    import gguf
    import ml_dtypes  # noqa: F401  numpy's bfloat16
    import numpy as np
    from safetensors.numpy import load_file

    llama_cpp = quiet_llama_cpp()
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    tensors = load_file(Path(checkpoint) / "model.safetensors")
    half = Path(out).with_suffix(".f16")
    writer = gguf.GGUFWriter(str(half), "llama")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    outer["lm_head.weight"] = "output.weight"
    turned = {"self_attn.q_proj": heads, "self_attn.k_proj": config["num_key_value_heads"]}
    for name, tensor in tensors.items():
        target = outer.get(name)
        if target is None:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            target = f"blk.{layer}.{names[part]}.weight"
            if part in turned:  # llama.cpp turns numbers that are neighbours, transformers those of a head's two halves
                tensor = tensor.reshape(turned[part], 2, -1, hidden).swapaxes(1, 2).reshape(-1, hidden)
        writer.add_tensor(target, tensor.astype(np.float32 if tensor.ndim == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    status = llama_cpp.llama_model_quantize(str(half).encode(), out.encode(), ctypes.byref(parameters))
    half.unlink()
    if status:
        raise SystemExit(f"llama.cpp could not quantise {half}")


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "write_gguf":
        write_gguf(*arguments)
        return
    path, settings = arguments
    runs: dict[str, Callable[[str, dict[str, Any]], Any]]
    runs = {"llama_cpp": llama_cpp, "llama_cpp_replies": llama_cpp_replies, "genai": genai}
    print(json.dumps(runs[what](path, json.loads(settings))))


if __name__ == "__main__":
    main()
