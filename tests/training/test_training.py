"""Training: each stage lowers its own loss, the gate leaves the body alone, an interrupted run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

import rrt_edge
from rrt_edge.model.text import IGNORED, encode_chat, read_examples
from rrt_edge.runtime.scoring.corpus import read_records
from rrt_edge.runtime.system.options import read_options
from rrt_edge.training.data import Packed, PadCollator, stream_examples
from rrt_edge.training.evaluation import depth_scores
from rrt_edge.training.losses import divergence, exit_loss, gate_loss, weighted_exit_loss
from rrt_edge.training.options import TrainOptions, read_yaml
from rrt_edge.training.teacher import CachedTeacher, OnlineTeacher, cache_teacher, predicting, text_of
from rrt_edge.training.trainer import StageTrainer
from tests.training.chats import CHATS, quick


def test_forward_kl_is_torchs_divergence_of_the_two_distributions() -> None:
    student, teacher = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    p, q = torch.distributions.Categorical(logits=teacher / 2), torch.distributions.Categorical(logits=student / 2)
    expected = torch.distributions.kl_divergence(p, q).mean() * 4
    torch.testing.assert_close(divergence(student, teacher, temperature=2.0), expected)


def test_the_other_divergences_are_what_their_names_say() -> None:
    student, teacher = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    p, q = torch.softmax(teacher / 2, -1), torch.softmax(student / 2, -1)
    mixture = (p + q) / 2
    expected = {
        "reverse-kl": (q * (q / p).log()).sum(-1).mean() * 4,
        "jsd": 0.5 * ((p * (p / mixture).log()).sum(-1) + (q * (q / mixture).log()).sum(-1)).mean() * 4,
        "tvd": 0.5 * (p - q).abs().sum(-1).mean(),
    }
    for kind, wanted in expected.items():
        torch.testing.assert_close(divergence(student, teacher, kind, 2.0), wanted)  # type: ignore[arg-type]
        assert float(divergence(teacher, teacher, kind)) < 1e-6  # type: ignore[arg-type]


def test_the_weighted_loss_counts_deeper_loops_more() -> None:
    logits = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(5)
    each = [torch.nn.functional.cross_entropy(one, targets) for one in logits]
    expected = each[0] / 6 + each[1] / 3 + each[2] / 2
    torch.testing.assert_close(weighted_exit_loss(tuple(logits), targets), expected)


def test_early_losses_do_not_pull_the_final_logits() -> None:
    early = torch.randn(5, 9, requires_grad=True)
    final = torch.randn(5, 9, requires_grad=True)
    exit_loss((early, final), torch.arange(5)).backward()
    assert early.grad is not None and final.grad is None


def test_the_gate_learns_whether_the_argmax_is_final() -> None:
    final = torch.eye(4) * 5
    early = torch.stack([final[0], final[1], final[0], final[0]])  # right, right, wrong, wrong
    right = torch.tensor([[9.0], [9.0], [-9.0], [-9.0]])
    assert gate_loss(right, (early, final)) < 0.01 < gate_loss(-right, (early, final))


def test_labels_are_the_answers_and_prompts_end_where_generation_begins(source: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source)
    example = encode_chat(tokenizer, [*CHATS[0], *CHATS[1]])
    trained = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(trained) == "The cow eats hay.</s>The ox eats hay.</s>"
    prompt = tokenizer.apply_chat_template(CHATS[0][:1], add_generation_prompt=True, return_dict=False)
    assert example["input_ids"][: len(prompt)] == prompt
    whole = tokenizer.apply_chat_template([*CHATS[0], *CHATS[1]], tokenize=False)
    assert tokenizer.decode(example["input_ids"]) == whole


def test_padding_is_not_trained_on() -> None:
    batch = PadCollator(0)([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8], "labels": [8]}])
    assert batch["labels"].tolist() == [[5, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_stages_bring_a_broken_model_back(source: Path, recursive: Path, data: Path, tmp_path: Path) -> None:
    # The teacher knows nothing of hay: it is followed a little only.
    options = quick(epochs=40, kd_weight=0.1)
    report = rrt_edge.train(recursive, tmp_path / "out", data=data, teacher=source, options=options)
    assert set(report.final_loss) == {"uptrain", "early-exit", "gate"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert model.config.gate_trained and not (tmp_path / "out.work").exists()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = PadCollator(0)(read_examples(data, tokenizer, 99)[:4])
    asked = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))
    targets = batch["labels"][batch["labels"] != IGNORED]
    with torch.no_grad():
        output = model(batch["input_ids"], batch["attention_mask"], logits_mask=asked, output_depths=True)
    losses = [torch.nn.functional.cross_entropy(logits, targets) for logits in output.depth_logits]
    assert losses[-1] < 0.5, losses
    assert losses[0] < 2.0, losses  # the first loop learnt to answer too


def test_the_gate_stage_freezes_the_body(recursive: Path, data: Path, tmp_path: Path) -> None:
    rrt_edge.train(recursive, tmp_path / "out", data=data, options=quick(stages=("gate",), epochs=2))
    before = AutoModelForCausalLM.from_pretrained(recursive).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"exit_gate.{name}" for name in ("inner", "inner_bias", "outer", "bias")}


@pytest.mark.parametrize("bits", [None, 4])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    recursive: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int | None
) -> None:
    options = quick(stages=("uptrain",), epochs=5, bits=bits)
    rrt_edge.train(recursive, tmp_path / "whole", data=data, options=options)

    steps = 0
    original = StageTrainer.training_step

    def interrupted(self: StageTrainer, *args: object, **kwargs: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rrt_edge.train(recursive, tmp_path / "cut", data=data, options=options)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(StageTrainer, "training_step", original)
    rrt_edge.train(recursive, tmp_path / "cut", data=data, options=options)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut").state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, atol=1e-5, rtol=1e-4)


def _chat(tools: Any = None, **answer: Any) -> str:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"} | answer]
    return json.dumps({"messages": messages, "tools": tools})


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"messages": [{"role": "user", "cont', "line 1: not a record of the form"),
        ('{"text": "fine"}\n{"txt": "no", "n": 1}\n', "line 2: not a record.*its fields are: txt, n"),
        ('{"text": "fine"}\n\n[1]\n', "line 3: not a record.*but a list"),
        ('{"text": null}\n', 'line 1: not a record.*"text" is null'),
        ('{"text": 5}\n', 'line 1: "text" must be a text, but it is the number 5'),
        ('{"text": "a \\ud83d b"}\n', "line 1: not a record.*half a character"),
        ('{"messages": {}}\n', 'line 1: "messages" must be a list of objects, but it is an object'),
        ('{"messages": []}\n', 'line 1: "messages" has no turn of the assistant'),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', 'line 1: "messages" has no turn of the assistant'),
        ('{"messages": ["a"]}\n', 'line 1: "messages", item 1 must be an object.*but it is a text'),
        (_chat(role=None), 'line 1: "messages", item 2: "role" must be a text such as "user", but it is null'),
        (_chat(content=None), 'line 1: "messages", item 2: "content" must be a text, but it is null'),
        (_chat(content=[{"text": "a"}]), 'item 2: each part of "content" must be an object with a "type"'),
        (_chat(content=[{"type": "text", "text": 1}]), 'item 2: "text" of a part of "content" must be a text'),
        (_chat(content="a\udc80"), "line 1: not a record.*half a character"),
        (_chat(tools="f"), 'line 1: "tools" must be a list of objects, but it is a text'),
        ("", "is empty"),
        ('{"text": ""}\n', "has a token to predict"),
        ('{"text": "fine"}\n'.encode("utf-16"), "data.jsonl: text in UTF-16; save the file as UTF-8"),
        (b'{"text": "fine"}\n{"text": "caf\xe9"}\n', "line 2: byte 0xe9 is not UTF-8"),
    ],
)
def test_damaged_data_names_the_line_and_the_field(
    recursive: Path, tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(rrt_edge.BadInputError, match=message):
        rrt_edge.train(recursive, tmp_path / "out", data=path)
    assert not (tmp_path / "out").exists()


def test_data_is_read_as_editors_save_it(source: Path, tmp_path: Path) -> None:
    tokenizer, path = AutoTokenizer.from_pretrained(source), tmp_path / "data.jsonl"
    lines = [json.dumps({"messages": CHATS[0]}).encode(), b'{"text": "A cow eats."}']
    path.write_bytes(b"\n".join(lines))
    expected = read_examples(path, tokenizer, 99)
    assert len(expected) == 2
    for saved in (
        b"\xef\xbb\xbf" + b"\n".join(lines),
        b"\r\n".join([*lines, b""]),
        b"\n\n \n".join([b"", *lines, b"\t\n"]),
    ):
        path.write_bytes(saved)
        assert read_examples(path, tokenizer, 99) == expected
    text = tmp_path / "data.txt"
    for saved in (b"A cow eats.\n\nAn ox\nsleeps.\n", b"\xef\xbb\xbfA cow eats.\r\n \r\nAn ox\r\nsleeps."):
        text.write_bytes(saved)
        assert [record for _, record in read_records(text)] == [{"text": "A cow eats."}, {"text": "An ox\nsleeps."}]


def test_a_template_that_refuses_a_chat_is_told_by_line(source: Path, tmp_path: Path) -> None:
    tokenizer, path = AutoTokenizer.from_pretrained(source), tmp_path / "data.jsonl"
    tokenizer.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('The user speaks\nfirst.') }}{% endif %}"
    )
    path.write_text(
        json.dumps({"messages": CHATS[0]})
        + "\n"
        + json.dumps({"messages": [{"role": "system", "content": "a"}, *CHATS[0]]})
        + "\n"
    )
    with pytest.raises(
        rrt_edge.BadInputError, match=r"line 2: the chat template refuses this chat \(The user speaks first\.\)"
    ):
        read_examples(path, tokenizer, 99)
    tokenizer.chat_template = None
    with pytest.raises(rrt_edge.BadInputError, match="line 1: the chat template refuses this chat"):
        read_examples(path, tokenizer, 99)


def test_tools_and_calls_reach_the_template(source: Path, tmp_path: Path) -> None:
    tokenizer, path = AutoTokenizer.from_pretrained(source), tmp_path / "data.jsonl"
    tokenizer.chat_template = (
        "{% for tool in tools %}{{ tool.name }} {% endfor %}"
        "{% for m in messages %}{{ m.content or m.tool_calls[0].name }}{% endfor %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "weigh"}]}
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "cow"}, call], "tools": [{"name": "weigh"}]}))
    (example,) = read_examples(path, tokenizer, 99)
    assert tokenizer.decode(example["input_ids"]) == "weigh cowweigh"


def test_examples_without_a_token_to_predict_are_passed_over(source: Path, recursive: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"text": ""}, {"messages": [{"role": "user", "content": "cow " * 99}, CHATS[0][1]]}, {"messages": CHATS[0]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_examples(path, AutoTokenizer.from_pretrained(source), 60)) == 1
    assert len(list(stream_examples(str(path), AutoTokenizer.from_pretrained(source), 60))) == 1


def test_wrong_ingredients_are_refused(source: Path, recursive: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(rrt_edge.BadInputError, match="not a recursive checkpoint"):
        rrt_edge.train(source, tmp_path / "out", data=data)
    with pytest.raises(rrt_edge.BadInputError, match="no such data file"):
        rrt_edge.train(recursive, tmp_path / "out", data=tmp_path / "none.jsonl")
    with pytest.raises(rrt_edge.BadInputError, match="stages downhill"):
        TrainOptions(stages=("downhill",))  # type: ignore[arg-type]
    with pytest.raises(rrt_edge.BadInputError, match="lr -1: must be a number above 0"):
        TrainOptions(lr=-1)


def test_packed_rows_are_trained_as_their_examples_alone(recursive: Path, data: Path) -> None:
    """Hidden states and losses of a packed row equal those of the examples in it, padding and all."""
    tokenizer = AutoTokenizer.from_pretrained(recursive)
    examples = read_examples(data, tokenizer, 99)[:5]
    model = AutoModelForCausalLM.from_pretrained(recursive)
    rows = list(Packed(examples, 2 * max(len(example["input_ids"]) for example in examples)))
    assert len(rows) < 5 and [token for row in rows for token in row["input_ids"]] == [
        token for example in examples for token in example["input_ids"]
    ]
    packed, alone = PadCollator(0)(rows), PadCollator(0)(examples)
    found = []
    with torch.no_grad():
        for batch in (packed, alone):
            asked = predicting(batch["labels"])
            assert ("attention_mask" in batch) != ("position_ids" in batch)
            found.append(model(**text_of(batch), logits_mask=asked).logits)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [".txt", ".parquet", ".jsonl"])
def test_text_files_of_every_kind_read_alike_at_once_and_streamed(recursive: Path, tmp_path: Path, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(recursive)
    texts = ["The cat sees the hen.", "The dog eats\nthe fox.", "The café."]
    path = tmp_path / f"data{kind}"
    if kind == ".txt":
        path.write_text("\n\n\n".join(texts) + "\n", "utf-8")
    elif kind == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    expected = [tokenizer.encode(text)[:9] for text in texts]
    assert [example["input_ids"] for example in read_examples(path, tokenizer, 9)] == expected
    stream = stream_examples(str(path), tokenizer, 9)
    for _ in range(2):  # a stream begins anew each time
        assert [example["input_ids"] for example in stream] == expected


def test_data_of_another_kind_is_refused(recursive: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b\n")
    with pytest.raises(rrt_edge.BadInputError, match=r"data\.csv: data of another kind; give a \.jsonl, \.txt, \.parq"):
        rrt_edge.train(recursive, tmp_path / "out", data=tmp_path / "data.csv")
    (tmp_path / "data.parquet").write_text("no parquet")
    with pytest.raises(rrt_edge.BadInputError, match=r"data\.parquet: not a parquet file"):
        rrt_edge.train(recursive, tmp_path / "out", data=tmp_path / "data.parquet")
    with pytest.raises(rrt_edge.BadInputError, match=r"hub:nobody/nothing: .*say how far with --max-steps"):
        rrt_edge.train(recursive, tmp_path / "out", data="hub:nobody/nothing")
    with pytest.raises(rrt_edge.BadInputError, match="hub:nobody/nothing: cannot be read from the Hugging Face hub"):
        rrt_edge.train(recursive, tmp_path / "out", data="hub:nobody/nothing", options=quick(max_steps=3))


def test_a_teacher_kept_on_disk_teaches_as_the_teacher_itself(
    source: Path, recursive: Path, data: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(recursive)
    examples = [{**one, "index": [n]} for n, one in enumerate(read_examples(data, tokenizer, 99)[:6])]
    teacher, collator = AutoModelForCausalLM.from_pretrained(source).eval(), PadCollator(0)
    batch = collator([examples[index] for index in (4, 1, 3)])
    asked = predicting(batch["labels"])
    fewer = asked & (torch.arange(asked.shape[1]) % 2 == 0)
    student = AutoModelForCausalLM.from_pretrained(recursive).eval()
    for top_k, error in ((299, 2e-3), (20, 1.0)):
        settings = {"top_k": top_k, "temperature": 2.0, "batch": 4}
        cache_teacher(teacher, examples, collator, tmp_path / f"{top_k}", **settings)
        cached, online = CachedTeacher(tmp_path / f"{top_k}"), OnlineTeacher(teacher)
        for mask in (asked, fewer):
            with torch.no_grad():
                logits = student(**text_of(batch), logits_mask=mask).logits
                answers = [one.answer(batch, mask) for one in (cached, online)]
                ours, theirs = (answer.divergence(logits, "forward-kl", 2.0) for answer in answers)
            assert 0 < float(ours) <= float(theirs) + 1e-3  # what is seen as one cannot differ more
            assert abs(float(ours) - float(theirs)) < error * float(theirs)
    with pytest.raises(rrt_edge.BadInputError, match=r"teacher\.json: temperature: made of another teacher"):
        cache_teacher(teacher, examples, collator, tmp_path / "20", top_k=20, temperature=1.0, batch=4)
    with pytest.raises(rrt_edge.BadInputError, match=r"teacher\.json: of: made of another teacher"):
        cache_teacher(teacher, examples[:5], collator, tmp_path / "20", top_k=20, temperature=2.0, batch=4)


def test_a_run_with_everything_on(source: Path, recursive: Path, data: Path, tmp_path: Path) -> None:
    """Packing, a kept teacher, accumulation, checkpointing, own learning rates, evaluation: and what is left behind."""
    options = quick(
        epochs=30, packing=True, accumulate=2, batch=2, max_length=64, gradient_checkpointing=True, eval_steps=5,
        lora_lr=5e-3, teacher_top_k=30, kd_weight=0.1, weight_decay=0.01, bf16=True,
    )  # fmt: skip
    report = rrt_edge.train(
        recursive, tmp_path / "out", data=data, eval_data=data, teacher=source,
        teacher_cache=tmp_path / "cache", options=options,
    )  # fmt: skip
    assert (tmp_path / "cache" / "teacher.json").is_file() and report.examples < 16
    logs = json.loads((tmp_path / "out" / "training.json").read_text())
    assert set(logs) == {"uptrain", "early-exit", "gate"}
    evaluations = [row for row in logs["uptrain"] if "eval_perplexity_1" in row]
    assert len(evaluations) > 3 and evaluations[-1]["eval_perplexity_3"] < evaluations[0]["eval_perplexity_3"] / 2
    assert all(row["eval_agreement_3"] == 1.0 for row in evaluations)
    assert (tmp_path / "out" / "training.png").read_bytes()[:4] == b"\x89PNG"
    assert list((tmp_path / "out" / "runs").rglob("events.out.tfevents.*"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    scores = depth_scores(model, [PadCollator(0)(read_examples(data, AutoTokenizer.from_pretrained(source), 64))])
    assert scores[-1].perplexity == pytest.approx(logs["gate"][-1]["eval_perplexity_3"], rel=0.05)


def test_each_part_has_its_learning_rate(recursive: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(recursive)
    options = quick(lr=1e-3, lora_lr=2e-3, gate_lr=3e-3, weight_decay=0.1)
    arguments = TrainingArguments(tmp_path, learning_rate=1e-3, report_to="none")
    trainer = StageTrainer(stage="uptrain", teacher=None, options=options, model=model, args=arguments)
    rates = {}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            rates[id(parameter)] = group["lr"], group["weight_decay"]
    for name, parameter in model.named_parameters():
        lr = 3e-3 if "exit_gate" in name else 2e-3 if "lora_" in name else 1e-3
        assert rates[id(parameter)] == (lr, 0.1 if parameter.dim() > 1 else 0.0), name


def test_a_yaml_file_says_what_flags_would(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "stages: all\nlr: 2e-4\nexit-epochs: 3\nbatch: 4\npacking: true\nkv_rule: latest\n"
    )
    options = read_options(TrainOptions, {**read_yaml(tmp_path / "a.yaml"), "batch": "8"})
    expected = TrainOptions(lr=2e-4, exit_epochs=3.0, batch=8, packing=True, kv_rule="latest")
    assert options == expected
    for text, message in (
        ("lrr: 1", "lrr: no such option; choose from accumulate, "),
        ("batch: 2.5", "batch: 2.5 is not of the type int"),
        ("packing: 3", "packing: 3 is not of the type bool"),
        ("- lr", r"must hold options as `name: value` lines"),
        ("a: [", "not valid YAML"),
        ("divergence: chi", "divergence 'chi': choose from forward-kl, reverse-kl, jsd, tvd"),
        ("stream: true", "stream: the end of a stream is not known; say how far with max-steps"),
    ):
        (tmp_path / "b.yaml").write_text(text)
        with pytest.raises(rrt_edge.BadInputError, match=message):
            read_options(TrainOptions, read_yaml(tmp_path / "b.yaml"))


@pytest.mark.parametrize("options", [{"exit_loss": "stochastic"}, {"exit_teacher": True, "exit_weight": 1.0}])
def test_other_exit_losses_teach_the_first_loop(
    source: Path, recursive: Path, data: Path, tmp_path: Path, options: dict
) -> None:
    def first_loop(folder: Path) -> float:
        examples = read_examples(data, AutoTokenizer.from_pretrained(folder), 64)
        return depth_scores(AutoModelForCausalLM.from_pretrained(folder).eval(), [PadCollator(0)(examples)])[
            0
        ].perplexity

    settings = quick(stages=("early-exit",), epochs=20, kd_weight=0.1, exit_kd_weight=0.1, **options)
    rrt_edge.train(recursive, tmp_path / "out", data=data, teacher=source, options=settings)
    assert first_loop(tmp_path / "out") < first_loop(recursive) / 10
