import pytest

from dmsh_serving.web.pictures.originals import Originals


@pytest.fixture
def originals(tmp_path):
    (tmp_path / "images").mkdir()
    return Originals(tmp_path / "images")
