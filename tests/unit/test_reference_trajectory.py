"""Ten steps of a tiny model have the committed numbers: a change of the numerics is seen, and has to be meant."""

import json

import pytest

from tests.reference.trajectory import CASES, FILE, run_case

COMMITTED = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_a_run_has_the_committed_trajectory(tiny_llava, tmp_path, name):
    found, expected = run_case(name, tiny_llava, tmp_path), COMMITTED["cases"][name]
    made_with = ", ".join(f"{package} {version}" for package, version in COMMITTED["versions"].items())
    for key, numbers in expected.items():
        assert len(found[key]) == len(numbers) == 10
        assert found[key] == pytest.approx(numbers, rel=COMMITTED["relative_tolerance"], abs=1e-6), (
            f"{key} is no longer what {FILE.name} holds (made with {made_with}); if that is meant, write it anew: "
            f"{COMMITTED['made_by']}"
        )
