"""Profiles of the property tests: a short one that makes the same examples every time, and a long random one.

HACL_FUZZ=2000 (examples per property) chooses the long one: new examples every time, shrunk and printed on failure.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("HACL_FUZZ", "0"))
CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]

settings.register_profile(
    "short", derandomize=True, max_examples=60, deadline=None, database=None, suppress_health_check=CHECKS
)
settings.register_profile(
    "long", max_examples=max(EXAMPLES, 1), deadline=None, database=None, suppress_health_check=CHECKS, print_blob=True
)


def load() -> None:
    settings.load_profile("long" if EXAMPLES else "short")
