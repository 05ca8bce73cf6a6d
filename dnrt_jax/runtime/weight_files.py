"""Reads and writes weight files, as torch state dicts.

    DIR/NAME.safetensors   tensors with torch names, readable by PyTorch
    DIR/config.json        the fields of `Description`, needed for predictions

A config.json of timm, as in its repositories on the Hugging Face hub, is read too. Only .pth files
need torch.
"""

import argparse
import io
import json
import pickle
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from dnrt_jax.runtime import storage
from dnrt_jax.runtime.errors import WeightsError
from dnrt_jax.runtime.storage import AnyPath

StateDict = dict[str, np.ndarray]  # {torch name: array}

CONFIG = "config.json"
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1"}
DTYPES |= {"I16": "<i2", "I8": "i1", "BOOL": "?"}
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
TIMM_ACTS = {"resnet18": "relu"}  # the transformers have gelu


@dataclass(frozen=True)
class Description:
    """The model and the preprocessing that belong to weights.

    model: arguments of `models.create`, at least name, num_classes, act and image_size.
    mean, std: per channel, for pixels in 0 .. 1.
    eval_resize: size of the shorter side before the centre crop, in pixels.
    class_names: one per class, or None if unknown.

    Raises:
      WeightsError: if these are inconsistent.
    """

    model: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eval_resize: int
    class_names: tuple[str, ...] | None

    def __post_init__(self):
        num_classes, image_size = self.model["num_classes"], self.model["image_size"]
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise WeightsError(
                f"mean={self.mean}, std={self.std}: need one value per channel, 1 or 3"
            )
        if not all(0 <= m <= 1 for m in self.mean):
            raise WeightsError(f"mean={self.mean}: must be in 0 .. 1, of pixels in 0 .. 1")
        if not all(s > 0 for s in self.std):
            raise WeightsError(f"std={self.std}: must be above 0")
        if num_classes < 1:
            raise WeightsError(f"num_classes={num_classes}: must be 1 or more")
        if self.eval_resize < image_size:
            raise WeightsError(f"eval_resize={self.eval_resize}: below image_size={image_size}")
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise WeightsError(f"{len(self.class_names)} class names for {num_classes} classes")


def read(path: AnyPath) -> StateDict:
    """Reads the state dict in a .safetensors file or a torch checkpoint (.pth, .pt, .bin).

    A checkpoint may hold it under "model" or "state_dict". No code in it is run: only tensors,
    plain Python values and argparse.Namespace are accepted.

    Raises:
      WeightsError: if the file cannot be read.
    """
    if not storage.is_file(path):
        raise WeightsError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        tensors = _read_torch(path)
    else:
        raise WeightsError(f"{path}: not a weight file; supported are .safetensors and .pth")
    wrapped = all(name.startswith("module.") for name in tensors)  # by DistributedDataParallel
    return {name.removeprefix("module.") if wrapped else name: x for name, x in tensors.items()}


def _read_safetensors(path: AnyPath) -> StateDict:
    data = storage.read(path)
    try:
        tensors = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: not a whole .safetensors file ({error})") from None
    return {name: _array(path, name, tensor) for name, tensor in tensors}


def _array(path: AnyPath, name: str, tensor: dict[str, Any]) -> np.ndarray:
    """A tensor of a .safetensors file."""
    dtype, data = tensor["dtype"], tensor["data"]
    if dtype == "BF16":  # numpy has none; float32 holds the same values
        array = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif dtype in DTYPES:
        array = np.frombuffer(data, DTYPES[dtype])
    else:
        raise WeightsError(f"{path}: {name} is of dtype {dtype}, which is not supported")
    return array.reshape(tensor["shape"])


def _read_torch(path: AnyPath) -> StateDict:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise WeightsError(
            f"{path}: needs PyTorch to be read: pip install 'dnrt_jax[torch]'"
        ) from None
    data = io.BytesIO(storage.read(path))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(data, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise WeightsError(
            f"{path}: refused, it holds {found[1] if found else 'something unknown'}; "
            "only tensors, plain values and argparse.Namespace are accepted"
        ) from None
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).partition(".")[0] or type(error).__name__
        raise WeightsError(f"{path}: not a whole torch checkpoint ({reason})") from None
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and torch.is_tensor(value) for name, value in content.items()
    ):
        raise WeightsError(
            f"{path}: no state dict {{name: tensor}} in it, nor under 'model' or 'state_dict'"
        )
    # numpy has no bfloat16; float32 holds the same values.
    as_float = lambda x: x.float() if x.dtype == torch.bfloat16 else x
    return {name: as_float(value).detach().numpy() for name, value in content.items()}


def read_description(path: AnyPath) -> Description | None:
    """Reads the config.json next to the weights `path`; None if absent or for other weights.

    Raises:
      WeightsError: for a damaged config.json.
    """
    try:
        content = _read_config(path)
        if content is None:
            return None
        return _of_timm(content) if "architecture" in content else _of_own(content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(
            f"{path.with_name(CONFIG)}: damaged ({error}); convert the weights again"
        ) from None


def described_in(folder: AnyPath) -> str | None:
    """The name of the weights that the config.json of `folder` describes, if it does."""
    try:
        content = json.loads(storage.read(folder / CONFIG))
    except (FileNotFoundError, ValueError):
        return None
    name = content.get("weights") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def _read_config(path: AnyPath) -> dict[str, Any] | None:
    """The config.json of the weights `path`, ours or timm's; None if there is none."""
    try:
        content = json.loads(storage.read(path.with_name(CONFIG)))
    except FileNotFoundError:
        return None
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("architecture"), str):
        return content
    return None if _other_owner(path) else content


def _other_owner(path: AnyPath) -> str | None:
    """What the config.json beside the weights `path` belongs to, if not to them."""
    described = described_in(path.parent)
    if described is None:
        return "something else" if storage.is_file(path.with_name(CONFIG)) else None
    is_of_others = described != path.name and storage.is_file(path.with_name(described))
    return described if is_of_others else None


def _of_own(content: dict[str, Any]) -> Description:
    return Description(
        model={k: tuple(v) if isinstance(v, list) else v for k, v in content["model"].items()},
        mean=tuple(content["mean"]),
        std=tuple(content["std"]),
        eval_resize=content["eval_resize"],
        class_names=content["class_names"] and tuple(content["class_names"]),
    )


def _of_timm(content: dict[str, Any]) -> Description:
    given = content.get("pretrained_cfg", content)  # one table in files of before 2023
    name, (_, image_size, _) = content["architecture"], given["input_size"]
    model = {"name": name, "act": TIMM_ACTS.get(name, "gelu"), "image_size": image_size}
    model |= {"distilled": False} if name == "deit_tiny_patch16_224" else {}  # here also the other
    model["num_classes"] = content.get("num_classes", given["num_classes"])
    for keyword, value in content.get("model_args", {}).items():
        model["image_size" if keyword == "img_size" else keyword] = value
    names = content.get("label_names")
    return Description(
        model=model,
        mean=tuple(given["mean"]),
        std=tuple(given["std"]),
        eval_resize=int(image_size / given["crop_pct"]),
        class_names=tuple(names) if names else None,
    )


def write(path: AnyPath, state_dict: StateDict, description: Description) -> None:
    """Writes `path` and the config.json next to it; on a disk both are replaced, or none.

    Raises:
      WeightsError: if `path` is not *.safetensors, or config.json belongs to something else.
      OSError: errors of the file system.
    """
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: the weights' name must end in .safetensors")
    # safetensors ignores strides.
    tensors = {name: np.ascontiguousarray(value) for name, value in state_dict.items()}
    write_bytes(path, safetensors.numpy.save(tensors), description)


def write_bytes(path: AnyPath, content: bytes, description: Description) -> None:
    """Writes `path` and the config.json next to it; on a disk both are replaced, or none.

    Raises:
      WeightsError: if config.json belongs to something else.
      OSError: errors of the file system.
    """
    config = path.with_name(CONFIG)
    if owner := _other_owner(path):
        raise WeightsError(f"{config}: belongs to {owner}; write to a folder of its own")
    described = {"weights": path.name, **asdict(description)}
    storage.make_folder(path.parent)
    storage.write_all({path: content, config: json.dumps(described, indent=2).encode() + b"\n"})
