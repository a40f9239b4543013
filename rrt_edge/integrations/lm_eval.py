"""lm-evaluation-harness runs bundles: importing this registers the model `rrt-edge`.

    python -m rrt_edge.harness --model rrt-edge --model_args bundle=FOLDER,exit_policy=threshold=0.9 --tasks TASK

Every score is what the exit policy gives: with a threshold, each token's probability comes from the depth it leaves at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from rrt_edge.runtime import BadInputError, Model, Sampling
from rrt_edge.runtime.scoring.metrics import log_softmax

Scored = tuple[float, bool]  # log probability of a text, and whether greedy decoding would give it


@register_model("rrt-edge")
class BundleLM(TemplateLM):  # type: ignore[misc]
    """A bundle as the harness wants it."""

    def __init__(
        self,
        bundle: str,
        exit_policy: str = "full",
        context: int | None = None,
        threads: int | None = None,
        max_gen_toks: int = 256,
        **_: Any,  # the harness adds what every model is given: batch size, device
    ) -> None:
        super().__init__()
        self.bundle = Model.load(bundle, context=context, threads=threads, device="cpu")
        self.policy = self.bundle.policy(exit_policy)
        self.max_gen_toks = max_gen_toks
        self._session = self.bundle.session(lazy_prompt=False)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text.

        Raises:
            BadInputError: the bundle names none.
        """
        if not self.bundle.manifest.eos_token_ids:
            raise BadInputError("this bundle names no end-of-text token, which the harness needs")
        return self.bundle.manifest.eos_token_ids[0]

    @property
    def tokenizer_name(self) -> str:
        return str(self.bundle.manifest.files["tokenizer.json"].sha256)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids: list[int] = self.bundle.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False).ids
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[Scored]:
        return [self._score(before, text) for _, before, text in tqdm(requests, disable=disable_tqdm)]

    def _score(self, before: list[int], text: list[int]) -> Scored:
        ids = (before + text)[-self.bundle.context :]
        text = text[-(len(ids) - 1) :]
        if self._session.kv_rule != "exact":  # what is held depends on where its tokens left
            self._session = self.bundle.session(lazy_prompt=False)
        total, greedy, at = 0.0, True, 0
        for logits in self._session.logits(ids[:-1], len(text), self.policy):  # [n, V]
            targets = np.array(text[at : at + len(logits)])
            total += float(log_softmax(logits)[np.arange(len(targets)), targets].sum())
            greedy = greedy and bool((logits.argmax(axis=-1) == targets).all())
            at += len(logits)
        return total, greedy

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        scores = []
        for request in tqdm(requests, disable=disable_tqdm):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.bundle.context - 1,
                context_len=1,
            )
            scores.append(sum(self._score(*make_disjoint_window(window))[0] for window in windows))
        return scores

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        replies = []
        for request in tqdm(requests, disable=disable_tqdm):
            prompt, options = request.args
            stop = options.get("until") or ()
            room = int(options.get("max_gen_toks", self.max_gen_toks))
            ids = self.tok_encode(prompt)[-(self.bundle.context - room) :]
            sampling = Sampling(
                temperature=options.get("temperature", 0.0) if options.get("do_sample") else 0.0,
                max_tokens=room,
                stop=tuple([stop] if isinstance(stop, str) else stop),
                seed=0,
            )
            replies.append(self._session.generate(ids, sampling, self.policy).text)
        return replies

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as a prompt.

        Raises:
            BadInputError: the bundle has no chat template.
        """
        if self.bundle.template is None:
            raise BadInputError("this bundle has no chat template")
        return self.bundle.template.render(chat_history)


def main() -> None:
    """Run the harness's own command line, in which the model `rrt-edge` is known."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
