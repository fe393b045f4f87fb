"""Networks and splits for the fixture ``data``: three classes that differ in colour, learnt in seconds."""

from dmsh_model.config import HashConfig
from dmsh_model.data.split import SplitOptions

SPLIT = SplitOptions(queries_per_class=5, train_per_class=24)


def config(**fields):
    values = {"backbone": "vgg_small", "bits": 12, "image_size": 16, "lateral_features": 8, "fusion_features": 16}
    return HashConfig(**{**values, "num_classes": 3, **fields})


def weights_of(folder):
    return (folder / "model.safetensors").read_bytes()


def stop_after(number):
    def on_epoch(epoch):
        if epoch.number == number:
            raise KeyboardInterrupt

    return on_epoch
