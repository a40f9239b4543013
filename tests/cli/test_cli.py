"""The command line, run as a program: JSON and nothing else on standard output, one-line errors, exit statuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rrt_edge.runtime import Stats
from tests.manifests import edit_manifest
from tests.program import refused, run

COMMANDS = ["convert", "train", "export", "verify", "inspect", "generate", "chat", "bench"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0 and f"Example: rrt-edge {command}" in done.stdout


@pytest.mark.slow
def test_the_whole_way_in_json(source: Path, tmp_path: Path) -> None:
    converted = json.loads(run("convert", source, tmp_path / "r", "--loops", 3, "--rank", 4, "--json").stdout)
    assert set(converted) == {
        "out", "loops", "layers_per_block", "rank", "init", "parameters", "seconds", "peak_memory_bytes",
        "component_ranks", "order", "lora_init", "own_vectors", "texts", "tokens", "kept", "output_errors",
    }  # fmt: skip
    assert {"projection", "kept", "worst", "worst_layer"} == set(converted["kept"][0])
    assert set(converted["parameters"]) == {"total", "non_embedding", "source_non_embedding"}
    assert (converted["loops"], converted["layers_per_block"], converted["rank"]) == (3, 4, 4)

    exported = json.loads(run("export", tmp_path / "r", tmp_path / "b", "--bits", 32, "--json").stdout)
    assert set(exported) == {"bundle", "bytes", "unshared_bytes", "bits", "seconds", "peak_memory_bytes", "cost"}
    assert exported["bytes"] == sum(path.stat().st_size for path in (tmp_path / "b").iterdir())

    done = run("verify", tmp_path / "b", "--source", tmp_path / "r", "--json")
    verified = json.loads(done.stdout)
    assert done.returncode == 0 and set(verified) == {"ok", "hashes_ok", "depths", "tolerance", "device"}
    assert verified["ok"] and [depth["depth"] for depth in verified["depths"]] == [1, 2, 3]
    assert set(verified["depths"][0]) == {"depth", "max_abs_logit_error", "kl", "top1_agreement"}
    alone = json.loads(run("verify", tmp_path / "b", "--json").stdout)
    assert alone["ok"] and alone["depths"] == []
    assert json.loads(run("inspect", tmp_path / "b", "--json").stdout)["architecture"]["loops"] == 3


def test_generate_prints_what_programs_rely_on(bundle: Path, recursive: Path) -> None:
    done = run(
        "generate", bundle, "--prompt-ids", "20,30,40", "--max-tokens", 8, "--json", "--exit-policy", "threshold=0.5"
    )
    found = json.loads(done.stdout)
    assert set(found) == {"text", "thought", "prompt_tokens", "tokens", "finish_reason", "stats"}
    assert set(found["stats"]) == {
        "device", "kv_rule",
        "prompt_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_s", "mean_depth",
        "block_rows_per_token", "steps_per_token", "drafted", "accepted", "text_drafted", "text_accepted",
        "peak_memory_bytes",
    }  # fmt: skip
    assert found["prompt_tokens"] == 3 and len(found["tokens"]) == 8 and found["finish_reason"] == "length"
    assert set(found["tokens"][0]) == {"id", "text", "depth", "gate", "gates"}

    import torch

    full = json.loads(run("generate", bundle, "--prompt-ids", "20,30,40", "--max-tokens", 8, "--json").stdout)
    model = AutoModelForCausalLM.from_pretrained(recursive)
    expected = model.generate(torch.tensor([[20, 30, 40]]), max_new_tokens=8, do_sample=False)[0, 3:].tolist()
    assert [token["id"] for token in full["tokens"]] == expected


def test_prompts_come_through_the_template_or_raw_or_from_a_pipe(bundle: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundle)
    raw = json.loads(run("generate", bundle, "The cat", "--raw", "--max-tokens", 3, "--json").stdout)
    chat = json.loads(run("generate", bundle, "The cat", "--max-tokens", 3, "--json").stdout)
    piped = json.loads(run("generate", bundle, "--max-tokens", 3, "--json", given="The cat\n").stdout)
    assert raw["prompt_tokens"] == len(tokenizer.encode("The cat"))
    assert (
        chat["prompt_tokens"] == len(tokenizer.encode("<user>The cat</s><assistant>")) and piped["text"] == chat["text"]
    )
    text = run("generate", bundle, "The cat", "--max-tokens", 3)
    assert text.stdout == chat["text"] + "\n" and "mean depth" in text.stderr


def test_wrong_input_is_one_line(source: Path, recursive: Path, bundle: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no such folder" in refused("convert", tmp_path / "none", tmp_path / "o")
    assert "holds no config.json" in refused("convert", empty, tmp_path / "o")
    assert "does not divide the 12 layers" in refused("convert", source, tmp_path / "o", "--loops", 5)
    assert "rank -3 is negative" in refused("convert", source, tmp_path / "o", "--rank", -3)
    assert "is recursive already" in refused("convert", recursive, tmp_path / "o")

    config = json.loads((source / "config.json").read_text())
    unknown = Path(shutil.copytree(source, tmp_path / "unknown"))
    (unknown / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert "model_type 'gpt2' is not supported" in refused("export", unknown, tmp_path / "o")

    damaged = Path(shutil.copytree(source, tmp_path / "damaged"))
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:5000])
    assert "damaged or cut short" in refused("convert", damaged, tmp_path / "o")

    cut = Path(shutil.copytree(bundle, tmp_path / "cut"))
    (cut / "model.onnx.data").write_bytes((cut / "model.onnx.data").read_bytes()[:5000])
    assert "model.onnx.data: 5000 bytes, the manifest says" in refused("generate", cut, "Hi")

    lying = Path(shutil.copytree(bundle, tmp_path / "lying"))
    edit_manifest(lying, lambda fields: fields["files"]["model.onnx"].update(sha256="0" * 64))
    assert "its SHA-256 is not the manifest's" in refused("generate", lying, "Hi")
    assert "its SHA-256 is not the manifest's" in refused("chat", lying)

    assert "the context holds 512" in refused("generate", bundle, "cat " * 600)
    assert "no such bundle folder" in refused("inspect", tmp_path / "none")
    assert "exit policy 'depth=7'" in refused("generate", bundle, "Hi", "--exit-policy", "depth=7")
    assert "--prompt-ids 'a,b'" in refused("generate", bundle, "--prompt-ids", "a,b")
    assert "exists and is not a bundle" in refused("export", recursive, recursive)
    assert "no such data file" in refused("train", recursive, tmp_path / "o", "--data", tmp_path / "none.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "damaged", "empty", "lying", "unknown"]


def test_verify_reports_a_changed_hash_with_status_1(bundle: Path, tmp_path: Path) -> None:
    lying = Path(shutil.copytree(bundle, tmp_path / "lying"))
    with (lying / "model.onnx").open("r+b") as file:
        file.write(b"\x00")
    done = run("verify", lying, "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["hashes_ok"] is False
    assert "SHA-256" in json.loads(done.stderr)["error"]["message"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("--debug", "inspect", tmp_path / "none")
    assert "Traceback" in done.stderr and done.returncode == 1


def test_export_without_the_extra_names_it(recursive: Path, tmp_path: Path) -> None:
    """As on a machine where only the runtime is installed: importing torch fails."""
    blocked = "import sys; sys.modules.update(torch=None, transformers=None); from rrt_edge.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", blocked, "export", str(recursive), str(tmp_path / "b")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "pip install 'rrt-edge[export]'" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_bench_prints_rows_as_json_and_as_a_table(bundle: Path) -> None:
    quick = ("--prompt", 6, "--new", 4, "--repeats", 1)
    rows = json.loads(run("bench", bundle, *quick, "--json").stdout)
    policies = ["full", "depth=1", "depth=2"]
    assert [row["test"] for row in rows] == [
        f"{kind}:{policy}" for kind in ("prefill", "decode") for policy in policies
    ]
    shown = run("bench", bundle, *quick, "--tests", "decode:depth=1,decode:full:accept=1")
    assert shown.returncode == 0 and "decode:depth=1" in shown.stdout and "tokens/s" in shown.stdout
    assert shown.stdout.count("simulated") == 2 and "depth=1 (simulated)" not in shown.stdout  # table and bars


def test_bench_refuses_what_it_cannot_measure(bundle: Path, tmp_path: Path) -> None:
    assert "give a bundle, or --shape with --random" in refused("bench")
    assert "say --random" in refused("bench", "--shape", "tinyllama")
    assert "choose from tinyllama" in refused("bench", "--shape", "huge", "--random")
    assert "no such bundle folder" in refused("bench", tmp_path / "nothing")
    assert "must be prefill or decode" in refused("bench", bundle, "--tests", "encode")


def test_export_spends_a_size_and_says_where(recursive: Path, tmp_path: Path) -> None:
    data, bundle = tmp_path / "data.jsonl", tmp_path / "bundle"
    data.write_text(json.dumps({"text": "The cat sees the hen. " * 30}) + "\n", "utf-8")
    refused = run("export", recursive, bundle, "--data", data, "--max-size", "1kB")
    assert refused.returncode == 2 and refused.stderr.startswith("error: max-size 0.00MB: too little for this model; ")
    least = float(refused.stderr.rpartition(" ")[2].removesuffix("MB\n"))
    size = f"{least + 0.03:.2f}MB"
    shown = run("export", recursive, bundle, "--data", data, "--max-size", size).stdout
    told = json.loads(run("export", recursive, bundle, "--data", data, "--max-size", size, "--json").stdout)
    assert told["bytes"] <= (least + 0.03) * 1e6 and sum(kind["raised"] for kind in told["spent"])
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines()]
    for kind in told["spent"]:
        assert [kind["kind"].replace("_", ", "), f"{kind['raised']} of {kind['count']}"] in [row[:2] for row in rows]
    listed = run("inspect", bundle).stdout
    assert "8 bits in the block" in listed


def test_export_outside_a_checkout_says_where_the_demo_lives(tmp_path: Path) -> None:
    import rrt_edge

    if (Path(rrt_edge.__file__).resolve().parent.parent / "samples").is_dir():
        pytest.skip("the package runs from a checkout, which has the demo")
    done = run("export", tmp_path / "b", cwd=tmp_path)
    assert done.returncode == 2 and "samples/pydoc/recursive" in done.stderr


def test_eval_and_calibrate(bundle: Path, recursive: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "The cat sees the hen. " * 30}) + "\n", "utf-8")
    found = [json.loads(run("eval", model, "--data", data, "--json").stdout) for model in (folder, recursive)]
    assert set(found[0]) == {"tokens", "scores", "gate"} and found[0]["tokens"] == found[1]["tokens"]
    for depth in ("depth=1", "depth=2", "depth=3"):
        ours, theirs = (one["scores"][depth] for one in found)
        assert set(ours) == {"perplexity", "accuracy", "agreement", "exact", "mean_depth"}
        assert abs(ours["perplexity"] - theirs["perplexity"]) < 1e-3 * theirs["perplexity"]
        assert ours["agreement"] == theirs["agreement"]
    options = ("--data", data, "--agreement", "0.1", "--name", "mine", "--plot", tmp_path / "curve.png")
    calibrated = json.loads(run("calibrate", folder, *options, "--json").stdout)
    threshold = calibrated["points"]["mine"]["threshold"]
    assert json.loads((folder / "manifest.json").read_text())["gate"]["points"] == {"mine": threshold}
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    shown = run("eval", folder, "--data", data).stdout
    assert "mine" in shown and "depth=3" in shown
    assert run("generate", folder, "--raw", "The cat", "--exit-policy", "mine", "--max-tokens", "3").returncode == 0
    for wrong, message in (("full", "'full': is an exit policy already"), ("quick", "say what it promises")):
        options = ("--agreement", "0.5") if wrong == "full" else ()
        done = run("calibrate", folder, "--data", data, "--name", wrong, *options)
        assert done.returncode == 2 and message in done.stderr
    done = run("calibrate", folder, "--data", tmp_path / "none.jsonl")
    assert done.returncode == 2 and "none.jsonl: no such data file" in done.stderr


def test_generate_follows_schemas_patterns_and_grammars(bundle: Path, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "animals.lark"
    schema.write_text('{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}')  # noqa: E501  # fmt: skip
    grammar.write_text('start: "cat" | "dog"\n')
    asked = ("generate", bundle, "--prompt-ids", "20,30,40", "--json")
    assert json.loads(json.loads(run(*asked, "--json-schema", schema).stdout)["text"])["n"] in (1, 2)
    assert json.loads(json.loads(run(*asked, "--json-schema", schema.read_text()).stdout)["text"])["n"] in (1, 2)
    assert json.loads(run(*asked, "--grammar", grammar).stdout)["text"] in ("cat", "dog")
    assert len(json.loads(run(*asked, "--regex", "[ab]{3}").stdout)["text"]) == 3
    for options, line in (
        (("--regex", "a", "--grammar", grammar), "give one of them"),
        (("--json-schema", tmp_path / "none.json"), "none.json: cannot be read"),
        (("--regex", "("), "regex: "),
        (("--logit-bias", "7"), "logit-bias '7'"),
        (("--logit-bias", "7=200"), "logit-bias"),
        (("--min-tokens", "300"), "min-tokens 300"),
    ):
        assert line in refused("generate", bundle, "x", *options)


def test_generate_tells_log_probabilities_and_heeds_biases_and_stop_ids(bundle: Path) -> None:
    asked = ("generate", bundle, "--prompt-ids", "20,30,40", "--json", "--max-tokens", "5")
    tokens = json.loads(run(*asked, "--logprobs", "3").stdout)["tokens"]
    assert all(len(token["top_logprobs"]) == 3 and token["logprob"] <= 0 for token in tokens)
    assert all(token["top_logprobs"][0] == {"id": token["id"], "logprob": token["logprob"]} for token in tokens)
    first = tokens[0]["id"]
    banned = json.loads(run(*asked, "--logit-bias", f"{first}=-100").stdout)["tokens"]
    assert first not in [token["id"] for token in banned]
    ended = json.loads(run(*asked, "--stop-id", first).stdout)
    assert ended["finish_reason"] == "stop" and len(ended["tokens"]) == 1


def test_generate_goes_on_past_a_full_context_where_it_is_told_to(bundle: Path) -> None:
    long = ",".join(str(20 + at) for at in range(60))
    asked = ("generate", bundle, "--prompt-ids", long, "--json", "--context", "64", "--logit-bias", "1=-100")
    assert len(json.loads(run(*asked).stdout)["tokens"]) == 4
    shifted = json.loads(run(*asked, "--context-full", "shift", "--max-tokens", "100").stdout)
    assert len(shifted["tokens"]) == 100
    assert "the context holds 32" in refused("generate", bundle, "--prompt-ids", long, "--context", "32")


def test_drafts_are_told_by_where_they_came_from() -> None:
    from rrt_edge.cli.generate import drafts_of

    stats = Stats(20, 13, 100.0, 42.4, 0.1, 0.1, 2.0, 2.5, 1.5, 9, 6, 1 << 20, "cpu")
    assert drafts_of(stats) == "6 of 9 drafts"
    assert (
        drafts_of(dataclasses.replace(stats, text_drafted=4, text_accepted=3)) == "6 of 9 drafts (3 of 4 from the text)"
    )
