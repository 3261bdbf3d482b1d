import shutil

import pytest
from pairrm_checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "ranker")


@pytest.fixture
def broken(small, tmp_path):
    shutil.copytree(small.parent, tmp_path / "copy")
    return tmp_path / "copy" / "ranker"
