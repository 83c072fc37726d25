"""What attributions leave unexplained is told, lessened by more steps, and refused if it is all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from transfer_pruner import TransferPrunerWarning, embed, load_embeddings, save_embeddings


class Branched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(inputs))
        return self.head(torch.tanh(self.last(hidden + self.branch(hidden))))


def test_the_gap_of_each_layer_is_stored_and_where_it_is_an_error(tmp_path) -> None:
    torch.manual_seed(0)
    embedding = embed(Branched(), torch.randn(9, 6), name="t", target=1, n_steps=200)
    changes = embedding.signals["output_changes"]
    for layer in embedding.layers:
        sums = embedding.signals[f"examples/{layer}"].sum(axis=1)
        expected = abs(sums - changes).sum() / abs(changes).sum()
        assert embedding.provenance["gaps"][layer] == pytest.approx(expected, rel=1e-3)
    # The branch carries a part of the change alone: that is no error.
    assert embedding.provenance["whole"] == ["first", "last"]
    assert embedding.provenance["gaps"]["branch"] > 0.2
    assert max(embedding.provenance["gaps"][layer] for layer in ("first", "last")) < 0.01
    save_embeddings([embedding], tmp_path)
    assert load_embeddings(tmp_path)["t"].provenance["gaps"] == embedding.provenance["gaps"]


def layer_norm_first() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize("batch_size", [64, 3])
def test_where_the_sum_explains_little_more_steps_are_taken(batch_size: int) -> None:
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    embedding = embed(layer_norm_first(), inputs, name="t", target=1, batch_size=batch_size)
    # The norm of a tiny part of the input is that of all of it: 8 steps do not see it change.
    assert embedding.provenance["n_steps"] == 32
    assert max(embedding.provenance["gaps"].values()) < 0.5
    asked = embed(layer_norm_first(), inputs, name="t", target=1, n_steps=32)
    assert asked.vectors["1"] == pytest.approx(embedding.vectors["1"], rel=1e-4)


def test_where_more_steps_do_not_help_the_user_is_warned() -> None:
    torch.manual_seed(0)
    model = layer_norm_first()
    model[0].eps = 1e-16
    inputs = torch.randn(5, 8)
    with pytest.warns(TransferPrunerWarning, match=r"task 'far' leave \d+% of what .* 2 of 2"):
        embedding = embed(model, inputs, name="far", target=1)
    assert embedding.provenance["n_steps"] == 8


def test_where_the_sum_explains_enough_or_steps_were_asked_for_no_more_are_taken() -> None:
    torch.manual_seed(0)
    embedding = embed(Branched(), torch.randn(9, 6), name="t", target=1)
    assert embedding.provenance["n_steps"] == 8
    with pytest.warns(TransferPrunerWarning, match=r"task 't' leave .*; 9 steps"):
        asked = embed(layer_norm_first(), torch.randn(9, 8), name="t", target=1, n_steps=9)
    assert asked.provenance["n_steps"] == 9
    few = embed(layer_norm_first(), torch.randn(9, 8), name="t", target=1, n_steps=2)
    assert max(few.provenance["gaps"].values()) > 0.8


@pytest.mark.parametrize("method", ["conductance", "gradient_x_activation", "deep_lift"])
def test_attributions_that_are_all_zero_are_refused(method: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"task 't' .* are all 0: .* the output never changes"):
        embed(Branched(), torch.zeros(4, 6), name="t", target=1, method="conductance")
    dead = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        dead[0].bias.fill_(-1e3)
    with pytest.raises(ValueError, match="task 't' have attributions that are all 0"):
        embed(dead, torch.randn(4, 6), name="t", target=1, method=method)
