"""Ways to adapt a text encoder that train few weights, one a file, all with one interface."""

from towers.adaptation.adalora import AdaLoRA
from towers.adaptation.adapters import Adapters
from towers.adaptation.base import Adaptation
from towers.adaptation.bitfit import BitFit
from towers.adaptation.lora import LoRA
from towers.adaptation.low_rank import ALL_KERNELS, QUERY_VALUE
from towers.adaptation.prefix import PrefixTuning
from towers.adaptation.top_layers import TopLayers

__all__ = [
    "ALL_KERNELS",
    "QUERY_VALUE",
    "AdaLoRA",
    "Adaptation",
    "Adapters",
    "BitFit",
    "LoRA",
    "PrefixTuning",
    "TopLayers",
]
