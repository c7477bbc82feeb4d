"""Hidden states of chosen layers and positions: captured in batches, kept in a safe store, joined between models.

What needs torch lies in `hacl.representations.capture`; what is named here does not.
"""

from hacl.representations.join import Pairs, paired
from hacl.representations.reader import FeatureStore, Row
from hacl.representations.readout import Readout
from hacl.representations.samples import Sample, samples_from_records

__all__ = ["FeatureStore", "Pairs", "Readout", "Row", "Sample", "paired", "samples_from_records"]
