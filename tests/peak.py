"""How much memory a call takes at once."""

import tracemalloc


def peak_beyond(call):
    """Return the result and the bytes that were in use at once beyond it."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        result = call()
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    arrays = result if isinstance(result, tuple) else (result,)
    return result, peak - sum(each.nbytes for each in arrays if each is not None)
