from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.served_config import EncoderConfig, read_encoder_config
from dmsh_serving.triton.spec import RepositorySpec


def test_an_encoder_in_python_is_told_by_its_configuration(tmp_path):
    write_repository(tmp_path / "repository", RepositorySpec(tmp_path / "gallery", 64, 16, "ab" * 32))
    assert read_encoder_config(tmp_path / "repository") == EncoderConfig("python", False)
    assert read_encoder_config(tmp_path) == EncoderConfig("", False)
