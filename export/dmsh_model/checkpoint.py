"""Checkpoints: a folder of ``config.json`` and ``model.safetensors``."""

import errno
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dmsh_model.backbone import require_known
from dmsh_model.config import HashConfig
from dmsh_model.network import DMSH
from dmsh_model.pickles import check_pickles
from dmsh_serving.errors import InputError
from dmsh_serving.files import naming, replace_folder, temporary_beside

__all__ = [
    "CONFIG_FILE",
    "FLOAT",
    "FORMAT",
    "FORMAT_VERSION",
    "INTEGER",
    "WEIGHTS_FILE",
    "check_target",
    "load",
    "read_header",
    "read_tensor_file",
    "read_tensors",
    "read_torch_file",
    "save",
    "write_folder",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "dmsh-checkpoint"
FORMAT_VERSION = 1
_PICKLE, _STORAGES = "data.pkl", "data/"  # in the archive's one folder
_ZIP = b"PK\x03\x04"  # by which torch.load knows one
FLOAT, INTEGER = "float", "integer"  # kinds of checkpoint; a config that names none is a float one's


def save(model: DMSH, folder: Path, *, training: dict[str, Any] | None = None, overwrite: bool = False) -> None:
    """Write ``model`` to the checkpoint ``folder``, whole or not at all.

    ``training`` (plain JSON types) is kept beside the config for the record.

    Raises:
        InputError: ``folder`` exists and ``overwrite`` is False, or it is not a checkpoint.
    """
    check_target(folder, overwrite=overwrite)
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": FLOAT,
        "fingerprint": model.fingerprint,
        "config": model.config.to_dict(),
        "training": training or {},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_folder(folder, header, safetensors.torch.save(tensors))


def write_folder(folder: Path, header: dict[str, Any], weights: bytes) -> None:
    """Write ``config.json`` and ``model.safetensors`` to ``folder``, whole or not at all, replacing what it was."""
    fresh = temporary_beside(folder.absolute())
    fresh.mkdir()
    try:
        with naming(folder):
            (fresh / WEIGHTS_FILE).write_bytes(weights)
            (fresh / CONFIG_FILE).write_text(json.dumps(header, indent=2, sort_keys=True) + "\n")
        replace_folder(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def check_target(folder: Path, *, overwrite: bool, kind: str = FLOAT) -> None:
    """Raise :class:`InputError` if a checkpoint of ``kind`` cannot be written: before the work, not after it."""
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} exists already: choose another name, or --overwrite it")
    if folder.exists():
        _check_replaceable(folder, kind)
    if not folder.absolute().parent.is_dir():
        raise InputError(f"{folder.absolute().parent} is not a folder: create it, or write elsewhere")


def _check_replaceable(folder: Path, kind: str) -> None:
    """Refuse to replace what is no checkpoint, or float weights by another kind; what is damaged otherwise may be."""
    foreign = sorted({path.name for path in folder.iterdir()} - {CONFIG_FILE, WEIGHTS_FILE})
    if foreign:
        raise InputError(f"{folder} holds {foreign[0]}, which no checkpoint does: choose another name")
    try:
        header = json.loads((folder / CONFIG_FILE).read_text())
    except FileNotFoundError:
        header = None
    except (ValueError, RecursionError):
        header = {"config": {}, "kind": FLOAT if _holds_floats(folder / WEIGHTS_FILE) else kind}
    if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
        raise InputError(f"{folder} exists already and is no checkpoint: choose another name")
    if header.get("kind", FLOAT) == FLOAT != kind:
        raise InputError(f"{folder} is a float checkpoint, which cannot be made again of integers: choose another name")


def _holds_floats(weights: Path) -> bool:
    try:
        with safetensors.safe_open(weights, "np") as held:
            return any(tensor.get_dtype().startswith(("F", "BF")) for tensor in map(held.get_slice, held.keys()))
    except (OSError, safetensors.SafetensorError):
        return False


def load(path: Path) -> DMSH:
    """Read a float checkpoint: a folder, or a plain ``.pt``/``.pth`` state dict with a ``config.json`` beside it.

    Returns the network in eval mode, on the CPU.

    Raises:
        InputError: not a checkpoint; a pickle with code in it; missing, extra or misshapen tensors (each listed by
            name); or weights that are not the ones the config's fingerprint names.
    """
    header = read_header(path)
    if header.get("kind", FLOAT) != FLOAT:
        raise InputError(f"{path} is a checkpoint of kind {header['kind']}: this needs the float one it was made from")
    config = _config(path, header)
    require_known(config.backbone)
    state = _read_weights(path)
    asked, held = config.lateral_features * config.fusion_features, sum(tensor.numel() for tensor in state.values())
    if asked > held:  # said before memory is taken for them
        raise InputError(f"{path}: the fusion layer of its config has {asked:,} weights or more, the file {held:,}")
    model = DMSH(config)
    _check_state(path, model.state_dict(), state)
    model.load_state_dict(state)
    model.eval()
    stated = header.get("fingerprint")
    if stated is not None and path.is_dir() and stated != (actual := model.fingerprint):
        raise InputError(f"{path}: its weights give the fingerprint {actual[:12]}, its config says {str(stated)[:12]}")
    return model


def read_header(path: Path) -> dict[str, Any]:
    """Return the parsed ``config.json`` of a checkpoint (a folder, or a state dict with one beside it)."""
    if not path.exists():
        raise InputError(f"{path} does not exist: give a checkpoint folder (config.json + model.safetensors)")
    file = (path if path.is_dir() else path.parent) / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{file} is missing: a checkpoint is config.json + model.safetensors")
    try:
        header = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
        raise InputError(f"{file} has no object 'config'")
    if not isinstance(header.get("training", {}), dict):
        raise InputError(f"{file}: 'training' is no object")
    if header.get("format", FORMAT) != FORMAT or header.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise InputError(
            f"{file}: format {header.get('format')} version {header.get('format_version')} is not "
            f"{FORMAT} version {FORMAT_VERSION}, the one this release reads"
        )
    return header


def _config(path: Path, header: dict[str, Any]) -> HashConfig:
    try:
        return HashConfig.from_dict(header["config"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    return read_tensors(path / WEIGHTS_FILE if path.is_dir() else path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a ``.safetensors`` file or of a plain ``.pt``/``.pth`` state dict, on the CPU.

    Raises:
        InputError: missing, another kind of file, damaged, or a pickle that holds more than tensors.
    """
    state = read_tensor_file(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} is not a plain state dict of tensors: save model.state_dict()")
    return state


def read_tensor_file(path: Path) -> Any:
    """Return what a ``.safetensors``, ``.pt`` or ``.pth`` file holds, on the CPU; no code in it is run.

    Raises:
        InputError: missing, another kind of file, damaged, or a pickle that holds more than tensors and plain values.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is not a file")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise InputError(f"{path} is damaged: {error}") from error
    if path.suffix not in (".pt", ".pth"):
        raise InputError(f"{path} is neither a checkpoint folder nor a .safetensors, .pt or .pth file")
    return read_torch_file(path)


def read_torch_file(path: Path) -> Any:
    """Return what ``torch.save`` wrote to ``path``, on the CPU; no code in it is run.

    Raises:
        InputError: damaged, packed to less than its size, or holds more than tensors and plain values.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP  # else as versions of torch before 1.6 wrote it, without checksums
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                _check_unpacked(path, archive.infolist())
                content = _written_anew(path, archive)
                members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
                sizes = {name.removeprefix(_STORAGES): member.file_size for name, member in members.items()}
                check_pickles(io.BytesIO(archive.read(members[_PICKLE])), sizes, path.stat().st_size)
        else:
            content = io.BytesIO(path.read_bytes())
            check_pickles(content, None, len(content.getbuffer()))
            content.seek(0)
        return torch.load(content, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # to which a seek leads that a damaged archive asks for
            raise
        raise InputError(f"{path} is damaged: it is no whole zip archive") from error
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} is damaged, or holds more than tensors, and is refused") from error
    except Exception as error:  # an unpickler fed hostile bytes raises nearly anything
        raise InputError(f"{path} is damaged, or was not written by torch.save ({type(error).__name__})") from error


def _written_anew(path: Path, archive: zipfile.ZipFile) -> io.BytesIO:
    """Return an archive of the members that ``zipfile`` sees, their checksums compared, which torch does not do.

    In the file itself torch may find another table of contents.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as copy:
        for member in archive.infolist():
            try:
                copy.writestr(member.filename, archive.read(member))
            except zipfile.BadZipFile as error:
                raise InputError(f"{path} is damaged: {error}") from None
    content.seek(0)
    return content


def _check_unpacked(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that takes more memory than it has bytes: some kilobytes can be packed gigabytes."""
    size = path.stat().st_size
    # torch reads from the folder of the first member, and takes upper for lower case.
    names = {member.filename.partition("/")[2].lower() for member in members}
    if len(names) < len(members):
        raise InputError(f"{path} is refused: it holds two members of one name")
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed or sum(member.file_size for member in members) > size:
        what = f"{packed[0]} in it is compressed" if packed else f"what is in it is larger than its {size:,} bytes"
        raise InputError(f"{path} is refused: {what}; torch.save writes no such file, so save the weights anew")


def _check_state(path: Path, expected: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    problems = [f"missing {name} {list(expected[name].shape)}" for name in expected if name not in given]
    problems += [f"extra {name} {list(given[name].shape)}" for name in given if name not in expected]
    problems += [
        f"misshapen {name} {list(given[name].shape)} (expected {list(expected[name].shape)})"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    if problems:
        raise InputError(f"{path}: {len(problems)} tensors do not fit the config: " + "; ".join(problems))
