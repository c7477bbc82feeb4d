"""Where association lives in a model and along which directions: pairs, features, vectors, analysis of layers."""

from hacl.steering.association.features import AssociationFeatures, features_from_extraction, features_from_stores
from hacl.steering.association.pairs import PairRecord, filter_by_mentions, read_pairs, samples_of, write_pairs
from hacl.steering.association.upstream import import_upstream

__all__ = [
    "AssociationFeatures", "PairRecord", "features_from_extraction", "features_from_stores", "filter_by_mentions",
    "import_upstream", "read_pairs", "samples_of", "write_pairs",
]  # fmt: skip
