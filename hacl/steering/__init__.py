"""Steering: vectors added to a model's hidden states while it reads and writes, without changing its weights."""

from hacl.steering.compose import ComposeSteerer
from hacl.steering.concept import ConceptSteerer, typical_temperature, typical_threshold
from hacl.steering.flexac import FlexACSteerer
from hacl.steering.l2s import L2SSteerer, SteeringNet
from hacl.steering.lowrank import LowRankSteerer
from hacl.steering.norms import measure_norms
from hacl.steering.operators import Shift
from hacl.steering.positions import PositionPolicy
from hacl.steering.session import Session, steering
from hacl.steering.static import MeanSteerer, RandomSteerer, TableSteerer
from hacl.steering.steerer import ContextSpec, Steerer
from hacl.steering.trace import Stats, SteeringWarning, Trace
from hacl.steering.vectors import ArtefactError, Provenance, load_steerer, save_steerer

__all__ = [
    "ArtefactError", "ComposeSteerer", "ConceptSteerer", "ContextSpec", "FlexACSteerer", "L2SSteerer",
    "LowRankSteerer", "MeanSteerer", "PositionPolicy", "Provenance", "RandomSteerer", "Session", "Shift", "Stats",
    "Steerer", "SteeringNet", "SteeringWarning", "TableSteerer", "Trace", "load_steerer", "measure_norms",
    "save_steerer", "steering", "typical_temperature", "typical_threshold",
]  # fmt: skip
