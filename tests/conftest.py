import inspect
import os

import pytest
from hypothesis import HealthCheck, settings

from im2col_conv.engine import choice
from im2col_conv.engine.im2col import lookup

slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=slow)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.register_profile("explore", settings.get_profile("default"), max_examples=5000)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "default")
)


@pytest.fixture(scope="module")
def in_tiles():
    """Have small layers multiplied in tiles, as larger ones are, and not looked up."""
    kept = [
        inspect.getclosurevars(plan).nonlocals["kept"]
        for plan in (choice.forward_plan, choice.weight_grad_plan, choice.input_grad_plan)
    ]
    for plans in kept:
        plans.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "MOST_NUMBERS", 0)
        yield
    for plans in kept:
        plans.cache_clear()


@pytest.fixture(scope="module", params=["looked up", "in tiles"])
def each_way(request):
    """Run the tests of a module twice: with small layers looked up, and in tiles."""
    if request.param == "in tiles":
        request.getfixturevalue("in_tiles")
