"""Correct the texts of a set with a bundle at several exit policies, one text after another, and score the answers.

    python samples/proofread/score_bundle.py samples/proofread/bundle build/proofread/heldout.jsonl full fast balanced
    python samples/proofread/score_bundle.py samples/proofread/bundle samples/proofread/heldout/people.jsonl balanced

The answers are the model's own. For each policy one object of JSON: the scores, mean depth of all tokens, of those of
words that stand in the text and of those of words that were changed, the share of texts answered as at full depth, and
tokens a second. With `--sure P` the answers are what `python samples/proofread --sure P` makes of the replies, which
leaves out changes that the model is not sure of or that do not look like corrections; then without depths and speed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean

import pairs
import scoring
from proofread import Proofreader
from proofread.comparing import Change, compare
from proofread.replies import most_tokens

from rrt_edge.runtime import ExitPolicy, Generation, Model


@dataclass
class Depths:
    """The depths that tokens left at: of words copied from the text, and of words that were changed."""

    copied: list[int] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)

    def add(self, text: str, reply: Generation) -> None:
        """Sort a reply's tokens; what ends a reply is neither."""
        changes, at = compare(text, reply.text), 0
        for token in reply.tokens:
            behind = at + len(token.text)
            if behind > at:
                is_changed = any(_touches(change, at, behind) for change in changes)
                (self.changed if is_changed else self.copied).append(token.depth)
            at = behind


def _touches(change: Change, start: int, end: int) -> bool:
    """Whether a token is a part of what was put in, or the first behind what was left out."""
    if change.first == change.last:
        return start <= change.first < end
    return start < change.last and change.first < end


def prompts_of(model: Model, texts: Sequence[str]) -> list[list[int]]:
    return [model.encode_chat([{"role": "user", "content": text}]) for text in texts]


def replies_to(model: Model, prompts: Sequence[list[int]], policy: str | ExitPolicy) -> list[Generation]:
    """The model's greedy replies, one after another."""
    return [model.generate(ids, max_tokens=most_tokens(len(ids)), temperature=0, exit_policy=policy) for ids in prompts]


def record(
    policy: str, replies: Sequence[Generation], chosen: Sequence[tuple[str, str]], full: Sequence[str]
) -> dict[str, object]:
    texts, right = [text for text, _ in chosen], [target for _, target in chosen]
    answers = [reply.text.strip() for reply in replies]
    depths = Depths()
    for text, reply in zip(texts, replies, strict=True):
        depths.add(text, reply)
    seconds = sum(
        (reply.stats.generated_tokens - 1) / reply.stats.decode_tokens_per_second
        for reply in replies
        if reply.stats.decode_tokens_per_second
    )
    every = [token.depth for reply in replies for token in reply.tokens]
    same = [answer == other for answer, other in zip(answers, full, strict=True)]
    return {
        "policy": policy,
        **scoring.score(texts, right, answers).as_record(),
        "mean_depth": round(fmean(every), 4),
        "copied_depth": round(fmean(depths.copied), 4) if depths.copied else None,
        "changed_depth": round(fmean(depths.changed), 4) if depths.changed else None,
        "as_full_depth": round(fmean(same), 4),
        "tokens_per_second": round((len(every) - len(replies)) / seconds, 1) if seconds else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("policies", nargs="+", help="full, depth=N, fast, balanced, faithful, ...")
    parser.add_argument("--first", type=int, help="take the first texts of the set alone")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sure", type=float, metavar="P", nargs="+", help="score the sample's answers at these")
    arguments = parser.parse_args()

    chosen = pairs.read_pairs(arguments.texts)[: arguments.first]
    texts = [text for text, _ in chosen]
    with Model.load(arguments.bundle, device="cpu", threads=arguments.threads) as model:
        if arguments.sure is not None:
            for policy, sure in product(arguments.policies, arguments.sure):
                proofreader = Proofreader(model, policy, sure)
                answers = [proofreader.correct(text).text for text in texts]
                scores = scoring.score(texts, [target for _, target in chosen], answers).as_record()
                print(json.dumps({"policy": policy, "sure": sure, **scores}), flush=True)
            return
        prompts = prompts_of(model, texts)
        replies = {"full": replies_to(model, prompts, "full")}
        full = [reply.text.strip() for reply in replies["full"]]
        for policy in arguments.policies:
            if policy not in replies:
                replies[policy] = replies_to(model, prompts, policy)
            print(json.dumps(record(policy, replies[policy], chosen, full)), flush=True)


if __name__ == "__main__":
    main()
