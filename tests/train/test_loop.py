import gc

import pytest

from raylm.train.loop import uncollected


def test_garbage_is_looked_for_again_after_loading_even_after_an_error() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), uncollected():
        raise ImportError("no such library")
    assert gc.isenabled()
