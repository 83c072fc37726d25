"""The user's own ``model(**tokens)``, as a function of what its word embeddings give.

What it must satisfy: handed the embeddings of its own tokens, the model gives the logits that it
gives without being handed any; and every place where it reads the text is on the path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from transfer_pruner.attribution.scorer import Scorer
from transfer_pruner.attribution.structures import first_tensor
from transfer_pruner.attribution.wrappers import evaluating

# By this share of the largest logit two calls may differ that are to be one and the same.
_SAME = 1e-3


class TextScorer(Scorer):
    """Calls the model with its tokens and replaces what its word embeddings make of them.

    The extras of a batch are the tokens as the model takes them, ``input_ids`` among them.
    """

    def __init__(self, model: PreTrainedModel, tokens: Mapping[str, Tensor]) -> None:
        """Find the word embeddings, by a call with the tokens of one text.

        Raises
        ------
        ValueError
            If the model cannot be called with these tokens alone, has no word embeddings that take
            them, or gives other logits when it is handed its own embeddings.
        """
        super().__init__(model)
        ids = tokens["input_ids"]
        calls: list[nn.Module] = []

        def observe(module: nn.Module, asked: Tensor, output: Tensor) -> None:
            if _placed(asked, ids, output, output) is not None:
                calls.append(module)

        with evaluating(model), torch.no_grad():
            plain = first_tensor(self._observed(tokens, _tables(model), observe))
        self.words = _words(model, calls)
        weight = getattr(self.words, "weight", None)
        # Encoder and decoder may have a module each for the one table.
        self.tables = [
            module
            for module in dict.fromkeys(calls)
            if module is self.words or (weight is not None and module.weight is weight)
        ]
        with evaluating(model), torch.enable_grad():
            point = self.embed(ids).requires_grad_()
            handed = first_tensor(self.call(point, tokens))
            if handed.requires_grad:  # Reformer refuses to go back in eval mode
                torch.autograd.grad(handed.sum(), point, allow_unused=True)
        if not close(plain, handed, max(_SAME, 4 * torch.finfo(plain.dtype).eps)):
            raise ValueError(
                f"model, a {type(model).__name__}, gives other logits when it is handed the word "
                f"embeddings of its own tokens (by {(plain - handed).abs().max():.2g}): it is "
                "random, or reads the tokens elsewhere too, and what would be attributed is not it."
            )

    def embed(self, ids: Tensor) -> Tensor:
        """Look up the word embeddings of tokens: (n, positions) to (n, positions, width)."""
        with torch.no_grad():
            return first_tensor(self.words(ids))

    def call(self, inputs: Tensor, named: Mapping[str, Tensor]) -> Any:
        """Run the model on its tokens, with `inputs` as their word embeddings."""
        ids = named["input_ids"]

        def replace(_: nn.Module, asked: Tensor, output: Tensor) -> Tensor | None:
            types = named.get("token_type_ids")
            if types is not None and _same(asked, types) and not _same(asked, ids):
                return None  # GPT-2 looks token types up in the same table
            placed = _placed(asked, ids, inputs, output)
            if placed is None:
                raise ValueError(
                    f"model, a {type(self.model).__name__}, embeds tokens that are not the text's "
                    f"(of shape {tuple(asked.shape)}, the text's are {tuple(ids.shape)}): their "
                    "place on the path is not known."
                )
            return placed

        return self._observed(named, self.tables, replace)

    def _observed(
        self,
        tokens: Mapping[str, Tensor],
        tables: list[nn.Module],
        look: Callable[[nn.Module, Tensor, Tensor], Tensor | None],
    ) -> Any:
        """Call the model; `look` sees what its tables are asked, and may give another answer."""

        def hook(
            module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any
        ) -> Any:
            asked = next((x for x in (*args, *named.values()) if isinstance(x, Tensor)), None)
            if asked is None or asked.is_floating_point():
                return None
            answer = look(module, asked, first_tensor(output))
            if answer is None or not isinstance(output, tuple):
                return answer
            return (answer, *output[1:])

        with _hooked(tables, hook):
            return self.model(**tokens)


def takes(model: PreTrainedModel) -> Callable[[str], bool]:
    """Tell which of a tokenizer's outputs the model takes: those that its forward names."""
    parameters = inspect.signature(model.forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    always = {"input_ids", "attention_mask"} if anything else {"input_ids"}
    return lambda name: name in parameters or name in always


def close(one: Tensor, other: Tensor, tolerance: float | None = None) -> bool:
    """Whether two calls gave the same logits, to a share of the largest.

    Left out, it is what sums in another order leave of the type's digits.
    """
    if one.shape != other.shape:
        return False
    tolerance = tolerance or min(_SAME, 1000 * torch.finfo(one.dtype).eps)
    one, other = one.detach().double(), other.detach().double()
    scale = torch.maximum(one.abs().max(), other.abs().max())
    return bool((one - other).abs().max() <= tolerance * scale)


def _tables(model: PreTrainedModel) -> list[nn.Module]:
    """List the modules that may look words up."""
    tables: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    own = _own_words(model)
    return tables if own is None or own in tables else [own, *tables]


def _own_words(model: PreTrainedModel) -> nn.Module | None:
    try:
        words = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return words if isinstance(words, nn.Module) else None


def _words(model: PreTrainedModel, calls: list[nn.Module]) -> nn.Module:
    """Choose, of the modules that were asked for the text, the model's word embeddings."""
    own = _own_words(model)
    if own in calls:
        assert own is not None
        return own
    weight = getattr(own, "weight", None)
    tied = [module for module in calls if weight is not None and module.weight is weight]
    found = tied or calls
    if not found or len({id(module.weight) for module in found}) > 1:
        raise ValueError(
            f"model, a {type(model).__name__}, has no word embeddings that take the tokens of a "
            "text as they are: there is no path from a text to a baseline input."
        )
    return found[0]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _placed(asked: Tensor, ids: Tensor, inputs: Tensor, output: Tensor) -> Tensor | None:
    """Put the texts' embeddings where the model asked for its tokens; None if it did not.

    Models turn their tokens (XLNet), pad them to whole windows (Longformer), and shift them by one
    for a decoder (T5, BART). What is not of the text stays as it was looked up.
    """
    if _same(asked, ids):
        return inputs.clone()  # CTRL scales what it looked up in place
    if asked.dim() != 2 or ids.dim() != 2:
        return None
    if _same(asked, ids.T):
        return inputs.transpose(0, 1).clone()
    length, given = asked.shape[1], ids.shape[1]
    if len(asked) != len(ids) or given < 2:
        return None
    if length > given and torch.equal(asked[:, :given], ids):
        return torch.cat([inputs, output[:, given:]], dim=1)
    if length >= given and torch.equal(asked[:, 1:given], ids[:, :-1]):
        return torch.cat([output[:, :1], inputs[:, : given - 1], output[:, given:]], dim=1)
    return None


@contextmanager
def _hooked(modules: list[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
