"""A recursive folder in other people's programs: transformers' pipeline, beams, Trainer, model cards, the harness."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    pipeline,
)

import rrt_edge
from rrt_edge.runtime import Model, Sampling
from rrt_edge.runtime.scoring.bundle_scores import score_bundle
from rrt_edge.runtime.scoring.examples import Example

IDS = torch.randint(2, 300, (2, 11), generator=torch.Generator().manual_seed(7))


def test_pipeline_generates(recursive: Path) -> None:
    generator = pipeline("text-generation", model=str(recursive))
    options = {"max_new_tokens": 8, "do_sample": False}
    (found,) = generator("The cat", **options)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(recursive), AutoTokenizer.from_pretrained(recursive)
    expected = model.generate(**tokenizer("The cat", return_tensors="pt"), **options)
    assert found["generated_text"] == tokenizer.decode(expected[0], skip_special_tokens=True)


@pytest.mark.parametrize("options", [{"num_beams": 4}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_equal_the_sources(source: Path, tmp_path: Path, options: dict) -> None:
    rrt_edge.convert(source, tmp_path / "out", loops=3, rank=10_000)
    both = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), LlamaForCausalLM.from_pretrained(source)
    fixed = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ours, theirs = (model.generate(IDS, **fixed, **options) for model in both)
    assert torch.equal(ours, theirs)


def test_the_plain_trainer_lowers_the_loss_and_saves_what_loads(recursive: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(recursive), AutoTokenizer.from_pretrained(recursive)
    data = [{"input_ids": tokenizer(f"The {noun} sees the hen.")["input_ids"]} for noun in ("cat", "dog", "fox")] * 8
    arguments = TrainingArguments(
        tmp_path / "run", num_train_epochs=4, per_device_train_batch_size=8, learning_rate=3e-3, report_to=[],
        logging_steps=1, save_strategy="no", use_cpu=True,
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collator)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0] / 2
    trainer.save_model(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again(IDS).logits, model.eval()(IDS).logits)
    assert ModelCard.load(tmp_path / "saved" / "README.md").data.library_name == "transformers"


def test_the_model_card_says_where_it_comes_from(source: Path, tmp_path: Path) -> None:
    rrt_edge.convert(source, tmp_path / "out", loops=3, rank=4, component_ranks={"kv": 2}, init="stepwise")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "text-generation" and "recursive-transformer" in card.data.tags
    for told in (source.name, "| 3 x 4 |", "| 4, kv 2 |", "block stepwise, adapters svd", "not trained"):
        assert told in card.text
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    model.config.gate_trained, model.config.source = True, "someone/model"
    model.save_pretrained(tmp_path / "pushed")
    card = ModelCard.load(tmp_path / "pushed" / "README.md")
    assert card.data.base_model == "someone/model" and "not trained" not in card.text


TASK = """
task: local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
doc_to_target: {target}
target_delimiter: ""
{more}
metric_list: [{{metric: {metric}}}]
"""


def evaluate(bundle: Path, folder: Path, policy: str, kind: str, **fields: str) -> dict:
    """One task of two lines, in a process of its own: the harness sets a good deal of the process's state."""
    lines = [
        {"text": "The cat sees the", "choices": [" hen.", " dog", " café"], "answer": 0},
        {"text": "The dog eats the", "choices": [" fox", " hen."], "answer": 1},
    ]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (folder / "local.yaml").write_text(TASK.format(path=folder / "lines.jsonl", kind=kind, **fields), "utf-8")
    code = """
import json, sys
import lm_eval, rrt_edge.harness
from lm_eval.tasks import TaskManager
bundle, folder, policy = sys.argv[1:]
found = lm_eval.simple_evaluate(
    "rrt-edge", model_args={"bundle": bundle, "exit_policy": policy, "max_gen_toks": 8}, tasks=["local"],
    task_manager=TaskManager(include_path=folder, include_defaults=False), log_samples=True, bootstrap_iters=0,
)
print(json.dumps([[sample["resps"], sample["filtered_resps"]] for sample in found["samples"]["local"]]))
"""
    command = [sys.executable, "-P", "-c", code, str(bundle), str(folder), policy]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("policy", ["full", "depth=1"])
def test_the_harness_scores_what_torch_scores(bundle: Path, recursive: Path, tmp_path: Path, policy: str) -> None:
    choices = {"target": "answer", "metric": "acc", "more": 'doc_to_choice: "{{choices}}"'}
    samples = evaluate(bundle, tmp_path, policy, "multiple_choice", **choices)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(recursive), AutoTokenizer.from_pretrained(recursive)
    texts = [("The cat sees the", [" hen.", " dog", " café"]), ("The dog eats the", [" fox", " hen."])]
    for (before, choices_of), (responses, _) in zip(texts, samples, strict=True):
        for choice, ((found, greedy),) in zip(choices_of, responses, strict=True):
            ids, start = tokenizer(before + choice)["input_ids"], len(tokenizer(before)["input_ids"])
            with torch.no_grad():
                logits = model(torch.tensor([ids]), depth=1 if policy == "depth=1" else None).logits[0]
            wanted = torch.tensor(ids[start:])
            shares = torch.log_softmax(logits[start - 1 : -1].double(), dim=-1)
            assert math.isclose(found, float(shares[range(len(wanted)), wanted].sum()), abs_tol=1e-3)
            assert greedy == bool((shares.argmax(-1) == wanted).all())


def test_the_harness_generates_with_early_exit(bundle: Path, tmp_path: Path) -> None:
    fields = {
        "target": "answer",
        "metric": "exact_match",
        "more": 'generation_kwargs: {until: ["hen"], max_gen_toks: 8}',
    }
    samples = evaluate(bundle, tmp_path, "threshold=0.5", "generate_until", **fields)
    with Model.load(bundle) as model:
        for text, ((reply,), _) in zip(("The cat sees the", "The dog eats the"), samples, strict=True):
            expected = model.generate(text, Sampling(max_tokens=8, stop=("hen",)), "threshold=0.5", raw=True).text
            assert reply[0] == expected


def test_scores_with_a_threshold_are_those_of_the_depths_it_chooses(bundle: Path) -> None:
    ids = np.random.default_rng(0).integers(2, 300, 40).tolist()
    with Model.load(bundle) as model:
        session = model.session()
        gates = score_bundle(model._loaded.runner, [Example([*ids, 2], [True] * 41)]).gate[0, -12:]
        policy = f"threshold={float(np.median(gates)):.4f}"  # so that some leave and some do not
        found = np.concatenate(list(session.logits(ids, 12, policy)))
        again = np.concatenate(list(session.logits(ids, 30, policy)))
        full = [np.concatenate(list(model.session().logits(ids, 12, f"depth={depth}"))) for depth in (1, 2, 3)]
        depths = {min(range(3), key=lambda d: np.abs(full[d][row] - found[row]).max()) for row in range(12)}
        nearest = [min(np.abs(full[depth][row] - found[row]).max() for depth in range(3)) for row in range(12)]
        with pytest.raises(rrt_edge.BadInputError, match="count 41: must be from 1 to the text's 40 tokens"):
            next(session.logits(ids, 41))
    assert len(depths) > 1 and max(nearest) < 1e-4
    np.testing.assert_allclose(again[-12:], found, atol=1e-4)


def test_the_harness_runs_from_the_command_line(bundle: Path, tmp_path: Path) -> None:
    """As the README has it, with an exit policy that itself holds an equals sign."""
    (tmp_path / "lines.jsonl").write_text(
        json.dumps({"text": "The cat sees the", "choices": [" hen.", " dog"], "answer": 0}) + "\n"
    )
    choices = {"target": "answer", "metric": "acc", "more": 'doc_to_choice: "{{choices}}"'}
    task = TASK.format(path=tmp_path / "lines.jsonl", kind="multiple_choice", **choices)
    (tmp_path / "local.yaml").write_text(task, "utf-8")
    options = ["--model", "rrt-edge", "--model_args", f"bundle={bundle},exit_policy=depth=1", "--tasks", "local"]
    command = [sys.executable, "-P", "-m", "rrt_edge.harness", *options, "--include_path", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "'exit_policy': 'depth=1'" in done.stdout and "acc" in done.stdout
