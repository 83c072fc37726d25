"""Which layers of a model are attributed, those that a user names or its blocks, and how read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from transfer_pruner.attribution.axes import FEW, MANY, NeuronAxes, examples_axis, fold_of
from transfer_pruner.attribution.scorer import Batch, Scorer
from transfer_pruner.attribution.taps import Tap
from transfer_pruner.attribution.watch import CallKey, Flow, watch
from transfer_pruner.attribution.wrappers import named_modules, own_module


class Survey:
    """What a model runs for a few probe examples, and which layers that leaves to choose from.

    Parameters
    ----------
    scorer : Scorer
    batch : Batch
        Probe examples, one or more.

    Attributes
    ----------
    shape : tuple of int
        Of the model's output.

    Raises
    ------
    ValueError
        If the model's output has not one row for each example.
    """

    def __init__(self, scorer: Scorer, batch: Batch) -> None:
        self.scorer = scorer
        self.batch, few = (
            batch.take(torch.arange(n, device=batch.inputs.device) % len(batch.inputs))
            for n in (MANY, FEW)
        )
        try:
            self.many = watch(scorer, self.batch, with_gradients=True)
            self.few = watch(scorer, few)
        except Exception:
            if len(batch.inputs) > 1:
                raise
            # A model that takes no two examples at once, such as a decoder without padding.
            self.batch = batch
            self.many = self.few = watch(scorer, batch, with_gradients=True)
        self.modules = named_modules(scorer.model)
        self.flow = Flow(self.many.output, self.many.inputs)
        self.shape = tuple(self.many.output.shape)
        for seen in (self.many, self.few):
            if len(seen.inputs) not in seen.output.shape[:1]:
                raise ValueError(
                    f"the model's output must be of shape (n,) or (n, outputs) but is "
                    f"{tuple(seen.output.shape)} for {len(seen.inputs)} examples."
                )

    def default_layers(self) -> list[str]:
        """Choose the layers of a model that nobody named.

        The modules of a ModuleList, as a transformer's blocks are, or else all modules with weights
        but embeddings, normalisations over batches and the output head; of both those that run
        once, and whose output has an axis of examples. A block that all depths share is as many
        layers as it has calls.

        Raises
        ------
        ValueError
            If nothing but the output head is left.
        """
        runs = self.many.counts
        with_examples = [name for name in runs if self._places((name, 0))]
        once = [name for name in with_examples if runs[name] == 1]
        blocks = [name for name in once if self._is_block(name)]
        if len(blocks) > 1:
            return self._reached(blocks)
        shared = [name for name in with_examples if runs[name] > 1 and self._is_shared_block(name)]
        outer = [name for name in shared if not any(name.startswith(f"{x}.") for x in shared)]
        if outer:
            return self._reached([layer for name in outer for layer in self._calls(name)])
        # An adapter's parts are no layers of their own: other models of the kind have none.
        adapted = [name for name in once if own_module(self.modules[name])]
        weighted = [
            name
            for name in once
            if not any(name.startswith(f"{outside}.") for outside in adapted)
            and _has_weights(own_module(self.modules[name]) or self.modules[name])
        ]
        # The last one is the output head: its attributions are the change of the output, whatever
        # the task.
        if len(weighted) < 2:
            raise ValueError(
                "layers cannot be chosen for this model: no module with weights but the output "
                "head runs exactly once. Name some of: "
                f"{', '.join(list(self.modules)[:10]) or 'none'}."
            )
        return self._reached(weighted[:-1])

    def taps(
        self, layers: Sequence[str], neuron_axis: int | Mapping[str, int] | None = None
    ) -> dict[str, Tap]:
        """Find out how each layer is read.

        A module that runs several times is as many layers, named ``"<module>#1"`` and on.

        Raises
        ------
        ValueError
            If a layer is no module, has no output of its own, or one that cannot be read.
        """
        if isinstance(layers, str):
            raise ValueError(f"layers must be a sequence of names but got the string {layers!r}.")
        named = {layer: str(layer).partition("#")[0] for layer in layers}
        named_layers(self.scorer.model, [*named.values()])
        keys: dict[str, CallKey] = {}
        for layer, name in named.items():
            calls = self._calls(name)
            if layer == name:
                keys |= {each: (name, call) for call, each in enumerate(calls)}
            elif layer in calls:
                keys[layer] = (name, calls.index(layer))
            else:
                raise ValueError(
                    f"layers holds {layer!r}, but {name!r} runs {len(calls)} times: name "
                    f"{' or '.join(repr(x) for x in calls[:2])}."
                )
        given: dict[str, int] = {}
        if isinstance(neuron_axis, Mapping):
            given = dict(neuron_axis)
        elif neuron_axis is not None:
            given = dict.fromkeys(keys, neuron_axis)
        for layer in given:
            if layer not in keys:
                raise ValueError(
                    f"neuron_axis holds {layer!r}, which is none of the layers: {', '.join(keys)}."
                )
        axes = NeuronAxes(self.scorer, self.batch, self.many)
        return {layer: self._tap(layer, key, axes, given.get(layer)) for layer, key in keys.items()}

    def _tap(self, layer: str, key: CallKey, axes: NeuronAxes, neuron_axis: int | None) -> Tap:
        name, call = key
        if key not in self.many.calls:
            raise ValueError(f"layers holds {layer!r}, {self._why_silent(name)}.")
        gave = self.many.calls[key].gave
        if not gave:
            raise ValueError(
                f"layers holds {layer!r}, which returns no floating-point tensor: name others."
            )
        places = self._places(key)
        if not places:
            shapes = ", ".join(str(tuple(x.shape)) for x in gave.values())
            raise ValueError(
                f"layers holds {layer!r}, whose output, of shape {shapes} for {MANY} examples, has "
                "no axis that follows their number: leave it out."
            )
        reached = [path for path in places if self.flow.reaches(gave[path])]
        if not reached:
            raise ValueError(
                f"layers holds {layer!r}, from which no gradient reaches the output: leave it out."
            )
        path = reached[0]
        tensor, (examples, each) = gave[path], places[path]
        shape = tuple(tensor.shape)
        fold = None
        if each > 1:
            fold = fold_of(self.scorer, self.batch, self.many, key, path, examples)
            if fold is None:
                raise ValueError(
                    f"layers holds {layer!r}, whose output, of shape {shape} for {MANY} examples, "
                    f"has {each} rows for each of them, in an order that cannot be told: leave it "
                    "out, or name a module around it."
                )
        neurons = axes(key, path, examples) if neuron_axis is None else (neuron_axis,)
        if neurons is None:
            raise ValueError(
                f"layers holds {layer!r}, of whose output, of shape {shape} for {MANY} examples, "
                "it cannot be told which axis holds the neurons and which the positions: say so "
                f"with neuron_axis={{{layer!r}: axis}}, or leave it out."
            )
        if neuron_axis is not None and neuron_axis not in range(-len(shape), len(shape)):
            raise ValueError(
                f"neuron_axis must be an axis of the output of {layer!r}, of shape {shape} for "
                f"{MANY} examples, but got {neuron_axis}."
            )
        if tensor.dim() > 1 and examples in {axis % tensor.dim() for axis in neurons}:
            raise ValueError(
                f"neuron_axis must be none that holds the examples, as axis {examples} of the "
                f"output of {layer!r} does, of shape {shape} for {MANY} of them, but got "
                f"{neurons[0]}."
            )
        whole = self.flow.is_whole(tensor)
        return Tap(
            self.modules[name],
            call=call,
            calls=self.many.counts[name],
            path=path,
            examples=examples,
            fold=fold,
            neurons=neurons,
            dims=tensor.dim(),
            whole=whole,
        )

    def _places(self, key: CallKey) -> dict[tuple[object, ...], tuple[int, int]]:
        """Find the axis of the examples of each tensor that a call gives and that has one."""
        few = self.few.shapes(key)
        if self.few is self.many:  # one example alone: its axis is one of size 1
            return {path: (shape.index(1), 1) for path, shape in few.items() if 1 in shape}
        found = {
            path: examples_axis(shape, few.get(path, ()))
            for path, shape in self.many.shapes(key).items()
        }
        return {path: axis for path, axis in found.items() if axis is not None}

    def _calls(self, name: str) -> list[str]:
        count = self.many.counts[name]
        return [name] if count < 2 else [f"{name}#{call + 1}" for call in range(count)]

    def _reached(self, layers: list[str]) -> list[str]:
        """Leave out what the output does not depend on, such as a pooler that is not used."""
        runs = self.many.calls
        reached = []
        for layer in layers:
            name, _, call = layer.partition("#")
            key = (name, int(call or 1) - 1)
            if any(self.flow.reaches(runs[key].gave[path]) for path in self._places(key)):
                reached.append(layer)
        return reached or layers

    def _is_block(self, name: str) -> bool:
        parent, _, index = name.rpartition(".")
        return index.isdigit() and isinstance(self.modules.get(parent), nn.ModuleList)

    def _is_shared_block(self, name: str) -> bool:
        return self._is_block(name) and not isinstance(self.modules[name], nn.RNNCellBase)

    def _why_silent(self, name: str) -> str:
        """Say why a module gave nothing."""
        within = [x for x in self.many.counts if x.startswith(f"{name}.")]
        direct = [x for x in within if "." not in x[len(name) + 1 :]]
        if within:
            some = ", ".join(sorted(direct or within)[:4])
            return f"which has no output of its own: name what is in it, such as {some}"
        return "which does not run, or not as a module: leave it out"


def named_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Find the modules that a user named.

    Raises
    ------
    ValueError
        If there are none, or one is no module of the model; similar names are told.
    """
    modules = named_modules(model)
    for name in names:
        if name not in modules:
            close = difflib.get_close_matches(str(name), list(modules), n=3) or list(modules)[:10]
            raise ValueError(
                f"layers holds {name!r}, which is no module of the model. Similar names: "
                f"{', '.join(close)}."
            )
    if not names:
        raise ValueError("layers must name at least one module of the model but is empty.")
    return {name: modules[name] for name in names}


def default_layers(scorer: Scorer, probe: Tensor) -> list[str]:
    """Choose the layers of a model that nobody named, as `Survey.default_layers` does."""
    batch = Batch(probe, torch.zeros_like(probe), scorer.extras)
    return Survey(scorer, batch).default_layers()


def _has_weights(module: nn.Module) -> bool:
    if isinstance(module, (nn.Embedding, nn.modules.batchnorm._BatchNorm)):
        return False
    # What parametrizes a weight holds it in the module's place.
    return is_parametrized(module) or next(module.parameters(recurse=False), None) is not None
