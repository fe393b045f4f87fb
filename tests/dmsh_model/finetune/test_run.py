"""Fine-tuning in integers: the trained arithmetic is the served arithmetic, and what is written proves as before."""

import dataclasses
import json
import shutil
import sys

import integer_networks
import numpy as np
import pytest
import torch
from coloured import SPLIT, stop_after, weights_of
from coloured import config as float_config
from PIL import Image as PillowImage

from dmsh_export.compare.generated import generated_images
from dmsh_export.prove.certificate import certify
from dmsh_export.quantise.calibration import Calibration
from dmsh_export.quantise.float_graph_from_model import float_graph
from dmsh_export.quantise.integer_from_float import integer_from_float
from dmsh_export.quantise.run import quantise
from dmsh_export.quantise.scales import ScaleOptions, chosen_scales
from dmsh_export.to_onnx.integer import export_integer_onnx
from dmsh_model import checkpoint, cli
from dmsh_model.config import LossWeights
from dmsh_model.data.load import load_labelled
from dmsh_model.data.split import SplitOptions, split_images, split_record
from dmsh_model.finetune import run as integer_training
from dmsh_model.finetune.network import TrainableIntegerNetwork
from dmsh_model.finetune.split import split_as_taught
from dmsh_model.integer import checkpoint as integer_checkpoint
from dmsh_model.integer.bounds import FLOAT32_LIMIT
from dmsh_model.integer.layers import Image, Linear, Logits
from dmsh_model.integer.network import IntegerNetwork
from dmsh_model.integer.reference import IntegerDMSH, features, head
from dmsh_model.network import DMSH
from dmsh_model.training import run as training
from dmsh_model.training.loop import held_out_map
from dmsh_model.training.losses import distillation_loss
from dmsh_model.training.options import FINE_TUNING, Augmentation, TrainingOptions
from dmsh_model.training.state import state_path
from dmsh_serving.codes import unpack
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.images.read import ImageSet

pytestmark = pytest.mark.slow

OPTIONS = dataclasses.replace(FINE_TUNING, epochs=3, batch_size=16, learning_rate=3e-4)
ALONE = LossWeights(pairwise=0, quantisation=0, classification=0)  # the teacher's logits without labels


def config(**fields):
    """With a mean far from grey: padding with 128 instead of it is an error that fine-tuning can mend."""
    return float_config(mean=(0.1, 0.1, 0.1), std=(0.27, 0.27, 0.27), **fields)


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """A float checkpoint and the integer one that was made from it: ``float``, ``integer``."""
    root = tmp_path_factory.mktemp("start")
    options = TrainingOptions(epochs=2, batch_size=16, warmup_epochs=1)
    trained = training.fit(config(), data, SPLIT, options, root / "float")
    quantised = quantise(trained.model, [ImageSet(data.images, data.names, [])])
    integer_checkpoint.save(
        quantised.model,
        root / "integer",
        parent=trained.model.fingerprint,
        training=trained.record,
        quantisation=quantised.record(),
    )
    return root


@pytest.fixture(scope="module")
def start(folders):
    return integer_training.read_start(folders / "integer", folders / "float")


@pytest.fixture(scope="module")
def whole(start, data, tmp_path_factory):
    """A fine-tuning that ran through."""
    out = tmp_path_factory.mktemp("whole") / "integer"
    epochs = []
    return out, integer_training.fine_tune(start, data, SPLIT, OPTIONS, out, on_epoch=epochs.append), epochs


def trained_steps(network, images, steps, learning_rate=1e-2):
    """Yield the trainable network at its start and after each of some steps towards smaller logits."""
    trainable = TrainableIntegerNetwork(network)
    optimiser = torch.optim.Adam(trainable.parameters(), lr=learning_rate)
    yield trainable
    for _ in range(steps):
        optimiser.zero_grad()
        trainable(torch.from_numpy(images)).square().mean().backward()
        optimiser.step()
        trainable.constrain()
        yield trainable


@pytest.mark.parametrize("training_mode", [True, False])
def test_the_forward_pass_is_the_integer_networks_own_arithmetic_after_every_step(training_mode):
    model, images = integer_networks.model(), integer_networks.images(6)
    seen = set()
    for trainable in trained_steps(model.network, images, steps=4):
        trainable.train(training_mode)
        served = IntegerDMSH(model.config, trainable.network())
        found = trainable(torch.from_numpy(images)).detach().numpy()
        assert np.array_equal(found, served.logits(images))
        seen.add(served.fingerprint)
    assert len(seen) == 5  # it learnt at every step


@pytest.mark.parametrize("backbone", ["vgg_small", "resnet18", "efficientnet_lite0"])
def test_a_quantised_backbone_is_trained_as_it_is_served(backbone):
    torch.manual_seed(0)
    model = DMSH(config(backbone=backbone, image_size=32)).eval()
    images = generated_images(12, 32)
    calibration = Calibration(float_graph(model, centred=True))
    calibration.add(images)
    network = integer_from_float(calibration.graph, chosen_scales(calibration, ScaleOptions("mse", 0))).network
    *_, trained = trained_steps(network, images[:4], steps=2, learning_rate=2e-3)
    served = IntegerDMSH(model.config, trained.network())
    assert np.array_equal(trained(torch.from_numpy(images)).detach().numpy(), served.logits(images))
    assert served.fingerprint != IntegerDMSH(model.config, network).fingerprint


def test_fractions_that_augmentation_gives_are_rounded_to_pixels():
    model, images = integer_networks.model(), integer_networks.images(3)
    trainable = TrainableIntegerNetwork(model.network)
    found = trainable(torch.from_numpy(images) + 0.3).detach().numpy()
    assert np.array_equal(found, model.logits(images))


def test_no_gradient_passes_a_clipped_value_and_the_shifts_scale_passes_the_others():
    identity = Logits("logits", 2, np.eye(2, dtype=np.int8), np.zeros(2, np.int32), np.zeros(2, np.int8))
    linear = Linear(
        "linear",
        1,
        np.array([[100, 0, 0], [1, 0, 0]], np.int8),
        np.array([0, 0], np.int32),
        np.array([3, 3], np.int8),
    )
    network = IntegerNetwork((Image("image", 1), integer_networks.GlobalMax("flat", 0), linear, identity))
    trainable = TrainableIntegerNetwork(network)
    pixels = torch.tensor([148.0, 128.0, 128.0]).view(1, 1, 1, 3)  # 20, 0, 0 once 128 is taken off
    logits = trainable(pixels)
    assert logits.tolist() == [[127.0, 2.0]]  # 2000 / 8 is clipped; 20 / 8 = 2.5 is rounded to even
    logits.sum().backward()
    gradient = trainable.weights["2"].grad
    assert gradient[0].tolist() == [0, 0, 0]
    assert gradient[1].tolist() == [128 * 20 / 8, 0, 0]  # a master of 1 is a weight of 128
    assert trainable.biases["2"].grad.tolist() == [0, 128 * 128 / 8]


def test_weights_stay_int8_and_accumulators_below_2_to_the_24_however_far_a_step_goes():
    model = integer_networks.model()
    wide = dataclasses.replace(
        model.network.layers[10], source=9, weight=np.full((16, 12), 127, np.int8), bias=np.full(16, 2**23, np.int32)
    )
    network = IntegerNetwork((*model.network.layers[:10], wide, *model.network.layers[11:]))
    trainable = TrainableIntegerNetwork(network)
    with torch.no_grad():
        for masters in (trainable.weights, trainable.biases):
            for master in masters.values():
                master.mul_(3)
    trainable.constrain()
    after = trainable.network()
    peaks = [bounds.peak for index in range(len(after.layers)) if (bounds := after.accumulators[index])]
    assert max(peaks) < FLOAT32_LIMIT
    assert max(peaks) > 0.95 * FLOAT32_LIMIT  # no more was given up than had to be
    least = [int(layer.weight.min()) for layer in after.layers if hasattr(layer, "weight")]
    assert min(least) == -127  # twice (-128)(-128) does not fit the int16 that some ARM64 kernels add in
    images = integer_networks.images(3)
    found = trainable(torch.from_numpy(images)).detach().numpy()
    assert np.array_equal(found, IntegerDMSH(model.config, after).logits(images))


def test_a_network_with_larger_accumulators_is_refused():
    layers = integer_networks.network().layers
    wide = dataclasses.replace(layers[10], bias=np.full(16, 2**24, np.int32))
    with pytest.raises(InputError, match=r"layer fusion: an accumulator could reach .* make the integer checkpoint"):
        TrainableIntegerNetwork(IntegerNetwork((*layers[:10], wide, *layers[11:])))


def test_distillation_is_the_noise_of_the_relaxed_codes_against_their_power():
    logits, target = np.array([[0.5, -1.0, 8.0]]), np.array([[0.1, -2.0, 9.0]])
    expected = ((np.tanh(logits) - np.tanh(target)) ** 2).sum() / (np.tanh(target) ** 2).sum()
    found = distillation_loss(torch.from_numpy(logits), torch.from_numpy(target))
    assert found.item() == pytest.approx(expected)


def shaken(start):
    """The same start with a head whose weights are off by up to 12 of 127."""
    random, layers = np.random.default_rng(0), list(start.model.network.layers)
    for index in head(start.model.network):
        weight = layers[index].weight + random.integers(-12, 13, layers[index].weight.shape)
        layers[index] = dataclasses.replace(layers[index], weight=weight.clip(-127, 127).astype(np.int8))
    return dataclasses.replace(start, model=IntegerDMSH(start.model.config, IntegerNetwork(tuple(layers))))


@pytest.mark.parametrize("whole", [False, True])
def test_fine_tuning_brings_the_relaxed_codes_of_unseen_images_closer_to_the_float_networks(
    start, data, tmp_path, whole
):
    wrong, options = shaken(start), dataclasses.replace(OPTIONS, epochs=16)
    tuned = integer_training.fine_tune(wrong, data, SPLIT, options, tmp_path / "integer", weights=ALONE, whole=whole)
    queries = data.images[split_images(data, SPLIT).query]
    expected = start.teacher.logits(queries)
    noise = [
        float(((np.tanh(model.logits(queries)) - np.tanh(expected)) ** 2).sum()) for model in (wrong.model, tuned.model)
    ]
    assert noise[1] < 0.7 * noise[0]  # 0.54 on an Intel Xeon, below 0.5 on an AMD EPYC: training is in float
    assert tuned.after.equal_bits_share >= tuned.before.equal_bits_share
    trunk = range(head(start.model.network)[0])
    kept = [a is b for a, b in zip(wrong.model.network.layers, tuned.model.network.layers, strict=True)]
    assert all(kept[index] for index in trunk) != whole


def test_what_is_measured_from_features_is_what_the_checkpoint_gives_for_the_images(whole, start, data):
    out, tuned, _ = whole
    split = split_images(data, SPLIT)
    for model, said in ((integer_checkpoint.load(out), tuned.after), (start.model, tuned.before)):
        assert held_out_map(model, data, split) == said.map_all
        queries = data.images[split.query]
        equal = unpack(model.codes(queries), 12) == unpack(start.teacher.codes(queries), 12)
        assert equal.mean() == said.equal_bits_share


def test_images_cannot_change_at_random_while_the_trunk_stands_still(start, data, tmp_path):
    options = dataclasses.replace(OPTIONS, augmentation=Augmentation())
    with pytest.raises(InputError, match="sees each image once; train the whole network"):
        integer_training.fine_tune(start, data, SPLIT, options, tmp_path / "integer")
    integer_training.fine_tune(
        start, data, SPLIT, dataclasses.replace(options, epochs=1), tmp_path / "integer", whole=True
    )


@pytest.mark.parametrize("head_only", [False, True])
def test_a_head_that_is_trained_alone_computes_the_logits_of_the_whole_network(head_only):
    model, images = integer_networks.model(), integer_networks.images(6)
    trainable = TrainableIntegerNetwork(model.network, head_only=head_only)
    given = features(model.network, images) if head_only else images
    assert np.array_equal(trainable(torch.from_numpy(given)).detach().numpy(), model.logits(images))
    assert len(trainable.weights) == (2 if head_only else 6)


def test_the_checkpoint_holds_integers_of_the_same_shifts_and_the_record(whole, start, folders):
    out, tuned, epochs = whole
    written = integer_checkpoint.load(out)
    assert written.fingerprint == tuned.model.fingerprint != start.model.fingerprint
    for before, after in zip(start.model.network.layers, written.network.layers, strict=True):
        for field in dataclasses.fields(before):
            if field.name not in ("weight", "bias"):
                assert np.array_equal(getattr(before, field.name), getattr(after, field.name))
    header = checkpoint.read_header(out)
    record = header["quantisation"]["fine_tuning"]
    assert header["parent_fingerprint"] == record["teacher"] == start.teacher.fingerprint
    assert record["made_from"] == start.model.fingerprint
    assert record["after"] == dataclasses.asdict(tuned.after)
    assert header["training"]["split"] == checkpoint.read_header(folders / "float")["training"]["split"]
    assert header["quantisation"]["calibration_images"] == 96
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert epochs[-1].loss > epochs[-1].classification > 0 < epochs[-1].distillation
    assert not state_path(out).exists()


@pytest.mark.parametrize("dialect", ["onnxruntime", "tensorrt"])
def test_a_fine_tuned_checkpoint_passes_proof_and_parity(whole, data, tmp_path, dialect):
    out, _, _ = whole
    model, path = integer_checkpoint.load(out), tmp_path / "model.onnx"
    done = export_integer_onnx(model, path, data.images, dialect=dialect, max_batch=4)
    certificate = certify(path)
    assert certificate.fingerprint == model.fingerprint
    assert done.parity.passed
    with OnnxEncoder(path) as encoder:
        assert np.array_equal(encoder.infer(data.images[:9]).code, model.codes(data.images[:9]))


def test_the_same_arguments_give_the_same_integers_interrupted_or_not(whole, start, data, tmp_path):
    out, _, _ = whole
    with pytest.raises(KeyboardInterrupt):
        integer_training.fine_tune(start, data, SPLIT, OPTIONS, tmp_path / "integer", on_epoch=stop_after(2))
    assert not (tmp_path / "integer").exists()
    resumed = []
    integer_training.fine_tune(start, data, SPLIT, OPTIONS, tmp_path / "integer", resume=True, on_epoch=resumed.append)
    assert [epoch.number for epoch in resumed] == [3]
    assert weights_of(tmp_path / "integer") == weights_of(out)


def test_labels_count_where_they_are_given_a_weight(whole, start, data, tmp_path):
    weights, epochs = LossWeights(0.5, 0.3, 0.7), []
    out = tmp_path / "integer"
    integer_training.fine_tune(start, data, SPLIT, OPTIONS, out, weights=weights, on_epoch=epochs.append)
    last = epochs[-1]
    parts = 0.5 * last.pairwise + 0.3 * last.quantisation + 0.7 * last.classification + last.distillation
    assert last.loss == pytest.approx(parts, rel=1e-4)
    assert last.classification > 0
    assert weights_of(out) != weights_of(whole[0])


def test_resuming_another_fine_tuning_names_what_differs(start, data, tmp_path):
    out = tmp_path / "integer"
    with pytest.raises(KeyboardInterrupt):
        integer_training.fine_tune(start, data, SPLIT, OPTIONS, out, on_epoch=stop_after(1))
    with pytest.raises(InputError, match="--resume, or --overwrite"):
        integer_training.fine_tune(start, data, SPLIT, OPTIONS, out)
    with pytest.raises(InputError, match=r"loss\.pairwise was 1\.0, is 0\.5"):
        integer_training.fine_tune(start, data, SPLIT, OPTIONS, out, weights=LossWeights(0.5), resume=True)


def test_a_loss_that_is_not_a_number_stops_with_its_step_and_writes_no_checkpoint(start, data, tmp_path, monkeypatch):
    calls = []

    def poisoned(logits, target):
        calls.append(1)
        return real(logits * (float("nan") if len(calls) == 6 else 1), target)

    real = integer_training.distillation_loss
    monkeypatch.setattr(integer_training, "distillation_loss", poisoned)
    with pytest.raises(CheckError, match=r"the loss is nan in epoch 2, step 2 of 4: .* after epoch 1 is kept"):
        integer_training.fine_tune(start, data, SPLIT, OPTIONS, tmp_path / "integer")
    assert not (tmp_path / "integer").exists()


def test_images_of_another_size_are_refused(start, data, tmp_path):
    wide = dataclasses.replace(data, images=np.zeros((120, 24, 24, 3), np.uint8))
    with pytest.raises(InputError, match="colours has images of 24 pixels, the network 16"):
        integer_training.fine_tune(start, wide, SPLIT, OPTIONS, tmp_path / "integer")


def test_too_few_images_are_refused(start, data, tmp_path):
    with pytest.raises(InputError, match=r"no more than 40 images.*r \(40\)"):
        integer_training.fine_tune(start, data, SplitOptions(40, 24), OPTIONS, tmp_path / "integer")


def test_labels_of_other_classes_are_refused_where_they_count(start, data, tmp_path):
    two = dataclasses.replace(data, labels=data.labels % 2, class_names=["r", "g"])
    with pytest.raises(InputError, match="the float network knows 3 classes, colours 2"):
        integer_training.fine_tune(start, two, SPLIT, OPTIONS, tmp_path / "integer", weights=LossWeights())


def test_a_teacher_that_the_integers_were_not_made_from_is_refused(folders, tmp_path):
    torch.manual_seed(9)
    other = DMSH(config())
    checkpoint.save(other, tmp_path / "other")
    with pytest.raises(InputError, match=f"other is {other.fingerprint[:12]}: give the one it was made"):
        integer_training.read_start(folders / "integer", tmp_path / "other")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command ``of`` dmsh-train in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments, of="fine-tune"):
        monkeypatch.setattr(sys, "argv", ["dmsh-train", of, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def images(data, tmp_path_factory):
    """The same data as files."""
    root = tmp_path_factory.mktemp("files") / "colours"
    for pixels, label, name in zip(data.images, data.labels, data.names, strict=True):
        path = root / data.class_names[label] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PillowImage.fromarray(pixels).save(path)
    return root


def test_the_command_fine_tunes_on_the_teachers_split_and_says_what_it_gained(command, folders, images, tmp_path):
    out, result = tmp_path / "integer", tmp_path / "result.json"
    both = (folders / "integer", images, "--teacher", folders / "float")
    code, text, _ = command(*both, "--epochs", 1, "--out", out, "--json", result)
    assert code == 0
    assert "integer, fine-tuned" in text
    said = json.loads(result.read_text())
    taught = checkpoint.read_header(folders / "float")["training"]["split"]
    assert {name: said["split"][name] for name in ("queries_per_class", "train_per_class", "seed")} == {
        "queries_per_class": 5, "train_per_class": 24, "seed": taught["seed"],
    }  # fmt: skip
    assert said["fingerprint"] == integer_checkpoint.load(out).fingerprint
    assert said["options"]["weight_decay"] == 0
    assert not any(said["options"]["augmentation"].values())
    assert said["loss"] == dataclasses.asdict(LossWeights())
    code, _, error = command(*both, "--epochs", 1, "--out", out)
    assert (code, "exists already" in error) == (2, True)


@pytest.fixture
def taught(folders, images, tmp_path):
    """The float checkpoint, as if it had been trained on the files."""
    teacher, files = tmp_path / "float", load_labelled(str(images), config().image_size)
    shutil.copytree(folders / "float", teacher)
    header = json.loads((teacher / "config.json").read_text())
    header["training"] |= {"split": split_record(SPLIT, split_images(files, SPLIT)), "data_sha256": files.sha256}
    (teacher / "config.json").write_text(json.dumps(header))
    return teacher


def test_queries_that_the_teacher_was_trained_on_are_counted_and_said(command, folders, images, taught, tmp_path):
    result = tmp_path / "result.json"
    fit = (folders / "integer", images, "--teacher", taught, "--epochs", 1, "--json", result)

    def said(out, *options):
        code, text, _ = command(*fit, "--out", tmp_path / out, *options)
        assert code == 0
        tuned = json.loads(result.read_text())
        return tuned["queries_trained_on"], tuned["split"], text

    seen, split, text = said("as-taught", "--seed", 9)
    assert (seen, split["seed"], "held-out queries" in text, "trained on" in text) == (0, SPLIT.seed, True, False)
    # Fewer training images of the same split: its queries are drawn first, and so are the teacher's.
    assert said("fewer", "--train-per-class", 12)[0] == 0
    seen, split, text = said("more-queries", "--queries-per-class", 10)
    assert 0 < seen < split["queries"]
    assert f"{seen} of {split['queries']} queries were trained on before" in text
    assert "held-out" not in text


def test_an_evaluation_counts_the_queries_that_a_fine_tuning_learnt_from(command, folders, images, taught, tmp_path):
    fit = (folders / "integer", images, "--teacher", taught, "--epochs", 1)
    for out, options, learnt in (("as-taught", (), False), ("fewer", ("--queries-per-class", 1), True)):
        assert command(*fit, "--out", tmp_path / out, *options)[0] == 0
        code, text, _ = command(tmp_path / out, images, "--json", tmp_path / "found.json", of="evaluate")
        found = json.loads((tmp_path / "found.json").read_text())
        assert (code, found["split_as_trained"]) == (0, True)  # by the teacher, that is
        assert (found["queries_trained_on"] > 0, "A fine-tuning had another split" in text) == (learnt, learnt)


def test_queries_of_images_that_no_checkpoint_records_are_not_called_held_out(command, folders, images, tmp_path):
    both = (folders / "integer", images, "--teacher", folders / "float")  # trained on them in another order
    code, text, _ = command(*both, "--epochs", 1, "--out", tmp_path / "tuned")
    assert (code, "held-out" in text) == (0, False)
    assert "some queries may have been trained on" in text


def test_queries_of_other_images_or_of_an_unrecorded_training_are_not_known_to_be_held_out(start, data, tmp_path):
    options = dataclasses.replace(OPTIONS, epochs=1)
    others = dataclasses.replace(data, images=data.images ^ 1)
    assert (
        integer_training.fine_tune(start, others, SPLIT, options, tmp_path / "a").record["queries_trained_on"] is None
    )
    silent = dataclasses.replace(start, training={})
    assert integer_training.fine_tune(silent, data, SPLIT, options, tmp_path / "b").record["queries_trained_on"] is None


def test_what_an_earlier_fine_tuning_learnt_from_is_not_held_out_in_the_next(folders, data, tmp_path):
    options = dataclasses.replace(OPTIONS, epochs=1)
    other = dataclasses.replace(SPLIT, seed=SPLIT.seed + 1)

    def tuned(integer, split, out):
        start = integer_training.read_start(integer, folders / "float")
        return integer_training.fine_tune(start, data, split, options, out).record["queries_trained_on"]

    assert tuned(folders / "integer", other, tmp_path / "one") > 0  # the teacher's other split
    assert tuned(tmp_path / "one", SPLIT, tmp_path / "two") > 0  # held out of the teacher's, not of the first tuning's
    assert tuned(tmp_path / "two", SPLIT, tmp_path / "three") > 0  # nor once there is a second


def test_the_split_as_taught_keeps_every_option_of_it(data):
    taught = SplitOptions(4, 7, 3, train_in_database=False)
    record = {"split": split_record(taught, split_images(data, taught))}
    assert split_as_taught(record, None, None, 0) == taught
    assert split_as_taught(record, 2, None, 0) == dataclasses.replace(taught, queries_per_class=2)
    assert split_as_taught({}, None, None, 5) == SplitOptions(seed=5)
    with pytest.raises(InputError, match="is no object"):
        split_as_taught({"split": [1]}, None, None, 0)


def test_noise_is_on_the_features_that_are_learnt_from_and_not_on_those_that_are_measured(whole, start, data, tmp_path):
    _, noisy, _ = whole
    assert noisy.record["noise"] == integer_training.NOISE
    plain = integer_training.fine_tune(start, data, SPLIT, OPTIONS, tmp_path / "plain", noise=0)
    assert plain.record["noise"] == 0
    assert plain.model.fingerprint != noisy.model.fingerprint
    assert plain.before == noisy.before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise": -0.1}, "noise = -0.1 must be 0 or more"),
        ({"noise": float("nan")}, "noise = nan must be 0 or more"),
        ({"noise": 0.1, "whole": True}, "noise: it is added to the features of a trunk that does not learn"),
    ],
)
def test_noise_that_cannot_be_added_is_refused(start, data, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        integer_training.fine_tune(start, data, SPLIT, OPTIONS, tmp_path / "integer", **fields)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fields", [{"trunk_rate": 0.5}, {"validation_share": 0.2}, {"device": "cuda"}])
def test_options_that_fine_tuning_does_not_have_are_refused_and_not_ignored(start, data, tmp_path, fields):
    (name,) = fields
    with pytest.raises(InputError, match=f"{name}: options of float training"):
        integer_training.fine_tune(start, data, SPLIT, dataclasses.replace(OPTIONS, **fields), tmp_path / "integer")


BAD_USES = {
    "no teacher": (("integer",), "'--teacher'"),
    "a float checkpoint to fine-tune": (
        ("float", "--teacher", "float"),
        "float is a float checkpoint: name the integer one that dmsh-export quantize makes of it",
    ),
    "an integer teacher": (
        ("integer", "--teacher", "integer"),
        "integer is a checkpoint of kind integer: this needs the float one it was made from",
    ),
    "an option of float training": (("integer", "--teacher", "float", "--trunk-rate", 0.5), "--trunk-rate"),
    "nothing to resume": (("integer", "--teacher", "float", "--resume"), "no unfinished training"),
    "missing": (("absent", "--teacher", "float"), "absent does not exist"),
}


@pytest.mark.parametrize("use", BAD_USES)
def test_a_bad_use_is_one_line_and_exit_2_and_writes_nothing(command, folders, images, tmp_path, monkeypatch, use):
    options, message = BAD_USES[use]
    monkeypatch.chdir(folders)
    integer, *rest = options
    code, text, error = command(integer, images, "--out", tmp_path / "out", *rest)
    assert (code, text, error.count("\n")) == (2, "", 1)
    assert message in error
    assert list(tmp_path.iterdir()) == []
