"""The published feature networks, from weights on this machine: Inception v3, DINOv2, CLIP. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import UserError
from sfumato.evaluate.extractor import Extractor, rgb
from sfumato.files import refuse_pickle, sha256

_PUBLISHED = (
    "6726825d"  # how the sha256 of the Inception weights that torch-fidelity publishes begins; it is in their name
)
_SOURCE = "source_sha256"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@final
class Inception(Extractor):
    """Inception v3 of 2015, 2048 features of its last pooling, with torch-fidelity's network and resize: the FID's.

    weights: a .safetensors file of that network. One whose metadata say that it was converted from the file that
    torch-fidelity publishes (`source_sha256`; docs/evaluation.md has the command) gives a `fid`; any other `fd_inception`.
    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017.
    """

    def __init__(self, weights: Path) -> None:
        _check_file(weights, "inception")
        state, source = _read(weights)
        network = _build_inception(state, weights)
        super().__init__(network, "inception", sha256(weights), "bilinear 299, as TensorFlow 1", batch=100)
        self.is_fid = source.startswith(_PUBLISHED)

    def see(self, media: Tensor) -> Tensor:
        found: Tensor = self.network(rgb(media, self.name))[0]
        return found


def _build_inception(state: dict[str, Tensor], weights: Path) -> nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        raise _missing("inception", "torch-fidelity", error) from None
    # The class reads its weights from a pickle and from nothing else: it gets one in memory, of tensors just read.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        network: nn.Module = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        said = _short(error)
        raise UserError(f"{weights}: these are not the weights of torch-fidelity's Inception v3 ({said})") from None
    return network


@final
class DinoV2(Extractor):
    """DINOv2: the normalised class token, of pictures at 224x224. Oquab et al. 2023; for scores: Stein et al. 2023.

    folder: as transformers stores it, config.json with .safetensors.
    """

    def __init__(self, folder: Path, *, side: int = 224) -> None:
        loaders = {"dinov2": "AutoModel", "dinov2_with_registers": "AutoModel"}
        network = _from_transformers(folder, "dinov2", loaders)
        patch = network.config.patch_size
        if side % patch:
            raise UserError(f"side = {side}: must be a multiple of the patch of {patch} positions")
        super().__init__(network, "dinov2", _hash(folder), f"bicubic {side}", batch=100)
        self.side, self.patch = side, int(patch)

    def see(self, media: Tensor) -> Tensor:
        found: Tensor = self.network(_prepared(rgb(media, self.name), self.side, *_IMAGENET)).pooler_output
        return found

    def maps(self, media: Tensor) -> Tensor:
        """Its normalised patch tokens, as they lie in the picture."""
        states = self.network(_prepared(rgb(media, self.name), self.side, *_IMAGENET)).last_hidden_state
        return _laid_out(states, self.side // self.patch)


@final
class Clip(Extractor):
    """CLIP: the projected embedding of pictures at the size that the network was trained on. Radford et al. 2021.

    folder: as transformers stores it, config.json with .safetensors. For scores: Kynkaanniemi et al., "The Role of ImageNet
    Classes in Frechet Inception Distance", 2023.
    """

    def __init__(self, folder: Path) -> None:
        # Of a whole CLIP, the vision part read alone takes the size of its projection from elsewhere, and it may not fit.
        loaders = {"clip": "CLIPModel", "clip_vision_model": "CLIPVisionModelWithProjection"}
        network = _from_transformers(folder, "clip", loaders)
        self.side: int = network.vision_model.config.image_size
        super().__init__(network, "clip", _hash(folder), f"bicubic {self.side}", batch=100)

    def see(self, media: Tensor) -> Tensor:
        network: Any = self.network
        seen = network.vision_model(_prepared(rgb(media, self.name), self.side, *_CLIP)).pooler_output
        found: Tensor = network.visual_projection(seen)
        return found

    def maps(self, media: Tensor) -> Tensor:
        """Its patch tokens after the last layer, as they lie in the picture."""
        vision: Any = self.network.vision_model
        states = vision(_prepared(rgb(media, self.name), self.side, *_CLIP)).last_hidden_state
        return _laid_out(states, self.side // int(vision.config.patch_size))


def _laid_out(states: Tensor, side: int) -> Tensor:
    """The last side x side tokens of (B, L, D), what comes before being of the whole picture, as (B, D, side, side)."""
    return states[:, -side * side :].mT.reshape(len(states), -1, side, side)


def _prepared(media: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (B, 3, H, W) to normalised (B, 3, side, side), by the cubic filter of Pillow, over the whole picture."""
    x = media.float() / 255
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]


def _from_transformers(folder: Path, kind: str, loaders: Mapping[str, str]) -> Any:
    """A model of a folder, every weight of it read, by the class for its type. Raises UserError for any other folder."""
    if not (folder / "config.json").is_file() or not _weights(folder):
        raise UserError(
            f"extractor={kind}:{folder}: no config.json with .safetensors weights is there; download the model, as "
            "transformers stores it, and give its folder"
        )
    try:
        import transformers

        found = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        load: Callable[..., Any] | None = (
            None if found not in loaders else getattr(transformers, loaders[found]).from_pretrained
        )
    except (ImportError, RuntimeError) as error:
        raise _missing(kind, "transformers", error) from None
    if load is None:
        raise UserError(f"extractor={kind}:{folder}: this is a model of type {found}; give one of type {kind}")
    try:
        network, info = load(folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        said = _short(error)
        raise UserError(f"extractor={kind}:{folder}: the weights can't be read ({said}); download them again") from None
    # Weights that a file lacks, or has in another shape, are drawn at random there, with no more than a warning.
    for what in ("missing_keys", "mismatched_keys"):
        if wrong := sorted(map(str, info.get(what, ()))):
            raise UserError(
                f"extractor={kind}:{folder}: {len(wrong)} of the weights can't be read, such as {wrong[0]}; "
                "download them again"
            )
    return network


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _hash(folder: Path) -> str:
    """The sha256 of the file of weights; of several, that of their hashes in the order of their names."""
    hashes = [sha256(file) for file in _weights(folder)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _check_file(file: Path, kind: str) -> None:
    if not file.is_file():
        raise UserError(f"extractor={kind}:{file}: there is no such file; give the file of weights, as .safetensors")
    refuse_pickle(file)


def _read(file: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, and the hash of the file that they were converted from, if the metadata name one."""
    try:
        with safe_open(file, framework="pt") as stored:
            source = (stored.metadata() or {}).get(_SOURCE, "")
        return load_file(file), source
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: is not a .safetensors file ({error}); convert the weights to one") from None


def _missing(kind: str, package: str, error: Exception) -> UserError:
    said = _short(error)
    return UserError(
        f"extractor={kind}:... needs {package}, which can't be imported here ({said}); "
        'pip install "sfumato[eval]" installs it'
    )


def _short(error: Exception) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())[:160]
