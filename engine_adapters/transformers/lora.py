"""LoRA adapters: which are active in a model, and a digest of them.

Only plain LoRA is named. Whatever else peft can do to a model (virtual tokens, replaced modules, other tuners, LoRA
variants, merged weights) is refused.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import Any

from engine_adapters.transformers.tensor_digest import tensor_digest
from kvgate.chunk.space import NO_LORA
from kvgate.errors import UnsupportedModel


class LoraLayers:
    """The layers of a model that carry LoRA adapters, as they are now.

    Raises UnsupportedModel for a model that peft has changed in any other way.
    """

    def __init__(self, model: Any) -> None:
        self._layers = list(_lora_layers(model))
        self._owned = {id(tensor) for _, layer in self._layers for _, tensor in _tensors(layer)}

    def owns(self, tensor: Any) -> bool:
        """Whether a parameter belongs to an adapter, active or not."""
        return id(tensor) in self._owned

    def active(self) -> list[tuple[str, float]]:
        """The (layer, scaling) of every active adapter, layer by layer, in the order in which they act."""
        return [(name, layer.scaling[adapter]) for name, layer, adapter in self._active()]

    def active_tensors(self) -> list[Any]:
        """The parameters of every active adapter, in the same order."""
        return [tensor for _, layer, adapter in self._active() for _, tensor in _tensors(layer, adapter)]

    def digest(self) -> str:
        """`none`, or the sha256 over the layers, scalings and weights of every active adapter: 64 hex digits.

        Raises UnsupportedModel.
        """
        digest = hashlib.sha256()
        found = False
        for name, layer, adapter in self._active():
            if adapter in layer.lora_variant:
                raise UnsupportedModel(f"{name} has the LoRA variant {type(layer.lora_variant[adapter]).__name__}")
            found = True
            digest.update(f"{base_name(name)}\0{layer.scaling[adapter]!r}\0".encode())
            for part, tensor in _tensors(layer, adapter):
                digest.update(part.encode() + b"\0" + tensor_digest(part, tensor))
        return digest.hexdigest() if found else NO_LORA

    def _active(self) -> Iterator[tuple[str, Any, str]]:
        for name, layer in self._layers:
            if not layer.disable_adapters:
                for adapter in layer.active_adapters:
                    if adapter in layer.scaling:
                        yield name, layer, adapter


def without_peft(model: Any) -> Any:
    """The model that a PeftModel wraps, or the model itself."""
    wrapped = getattr(model, "get_base_model", None)
    return model if wrapped is None else wrapped()


def base_name(name: str) -> str:
    """The name that a module or tensor has in the model without peft."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    peft: Any = sys.modules.get("peft")
    if peft is None:  # nobody has imported it, so nobody has used it
        return
    if isinstance(model, peft.PeftModel) and model.active_peft_config.is_prompt_learning:
        raise UnsupportedModel("peft prompt learning puts virtual tokens into the KV that no chain hash covers")
    for name, module in model.named_modules():
        if isinstance(module, peft.utils.other.AuxiliaryTrainingWrapper):
            raise UnsupportedModel(f"peft replaces {name}; only LoRA adapters are named")
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            if not isinstance(module, peft.tuners.lora.LoraLayer):
                raise UnsupportedModel(f"{name} is a {type(module).__name__}; only LoRA adapters are named")
            if module.merged:
                raise UnsupportedModel("a LoRA adapter is merged into the weights; unmerge it first")
            yield name, module


def _tensors(layer: Any, adapter: str | None = None) -> Iterator[tuple[str, Any]]:
    """The (name, parameter) of one adapter of a layer, or of all; no adapter's name is in a name."""
    for part in layer.adapter_layer_names:
        for name, tensor in getattr(layer, part).named_parameters():
            owner, _, rest = name.partition(".")
            if adapter in (None, owner):
                yield f"{part}.{rest}", tensor
