"""A process of a training that torchrun starts: trains on four colours, and keeps what it ended with.

torchrun --nproc-per-node 2 distributed_training.py FOLDER EPOCHS [BATCH_SIZE]
"""

import sys
from pathlib import Path

import numpy as np
import torch

from dmsh_model import HashConfig
from dmsh_model.data.labelled import LabelledImages
from dmsh_model.data.split import SplitOptions
from dmsh_model.training import run as training
from dmsh_model.training.distributed import started_by_torchrun
from dmsh_model.training.options import TrainingOptions

CONFIG = HashConfig("vgg_small", 12, 16, taps=(1, 2), lateral_features=8, fusion_features=16, num_classes=4)


def colours():
    """Four classes that differ in colour, 24 noisy 16x16 images each."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 24)
    images = random.integers(0, 120, (96, 16, 16, 3)) + 130 * np.eye(4)[labels][:, None, None, :3]
    return LabelledImages("colours", images.astype(np.uint8), labels, [str(n) for n in range(96)], list("rgbk"))


def main():
    folder, epochs, batch_size = Path(sys.argv[1]), int(sys.argv[2]), int((sys.argv[3:] or ["16"])[0])
    rank = started_by_torchrun().rank
    seen, order = [], []
    real = training.total_loss

    def watched(logits, labels, *arguments):
        seen.append(len(labels))
        order.append(labels.tolist())
        return real(logits, labels, *arguments)

    training.total_loss = watched
    trained = training.fit(
        CONFIG,
        colours(),
        SplitOptions(queries_per_class=4, train_per_class=16),
        TrainingOptions(epochs, batch_size, warmup_epochs=1, validation_share=0.25, trunk_rate=0.5),
        folder / "model",
        on_epoch=lambda epoch: (folder / f"epochs-{rank}").open("a").write(f"{epoch.number}\n"),
    )
    ended = {"model": trained.model.state_dict(), "seen": seen, "order": order, "map_all": trained.map_all}
    torch.save(ended, folder / f"ended-{rank}.pt")


if __name__ == "__main__":
    main()
