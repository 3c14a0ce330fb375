"""From image files to pixels: preprocessing, decoding, the cache of decoded images."""

import errno
import functools
import hashlib
import io
import os
import shutil
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from PIL import Image, ImageOps

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import read_bytes, write_json
from imagenet_biases.base.schema import Malformed, Object, read_json
from imagenet_biases.images.archives import ArchiveReader
from imagenet_biases.study import STUDY_CROP, STUDY_RESIZE

if TYPE_CHECKING:
    from imagenet_biases.images.sets import ImageSet

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # those of image sets: Pillow tries no other decoder
LONGEST_SIDE = 100  # short sides: a strip of 65,000 x 1 would become 16 million x 256 before the crop
LOCK_SECONDS = 60  # to wait for another process that creates the cache: it takes a moment
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Preprocessing:
    """Turns a photograph into a square: resizes its short side to `resize`, then crops the central `crop` square.

    Attributes:
        resize: None: the files already have the size `crop` x `crop`; any other size is an error.
        as_seen: show custom images as viewers do: upright by their EXIF data, with all bit depths scaled to 8. Released
            sets are shown as they were released.
    """

    resize: int | None
    crop: int
    interpolation: str = "bilinear"
    as_seen: bool = False

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "crop crop 3"]:
        """Turn a Pillow image into RGB pixels. Raises ValueError for sizes that it does not accept."""
        from torchvision.transforms import InterpolationMode, functional

        transforms: Any = functional  # whose annotations know tensors only
        image = self.seen(image)
        if self.resize is None:
            if image.size != (self.crop, self.crop):
                raise ValueError(f"is {image.width} x {image.height}, must be {self.crop} x {self.crop}")
            image = image.convert("RGB")
        else:
            if max(image.size) > LONGEST_SIDE * min(image.size):
                raise ValueError(f"is {image.width} x {image.height}, a strip, not a picture")
            image = image.convert("RGB")
            image = transforms.resize(image, self.resize, InterpolationMode(self.interpolation))
            image = transforms.center_crop(image, self.crop)
        return np.array(image)

    def seen(self, image: Image.Image) -> Image.Image:
        """Return an image as viewers show it, where that is asked for."""
        return _as_seen(image) if self.as_seen else image

    def __str__(self) -> str:
        size = f"crop{self.crop}" if self.resize is None else f"{self.interpolation}{self.resize}-crop{self.crop}"
        return f"{size}-as-seen" if self.as_seen else size


def _as_seen(image: Image.Image) -> Image.Image:
    """Return an image upright and, if it is grey with more than 8 bits, with 8.

    Integers of 16 bits lose the lower 8; floating-point values are taken for shares of white where none exceeds 1, else
    for values of 8 bits. Pillow itself cuts both off at 255.

    Raises:
        ValueError: the range of the values is unknown.
    """
    if image.mode[0] in "IF":  # I;16, I (a PNG of 16 bits in older Pillow), F
        values = np.asarray(image)
        if not values.size or not np.isfinite(values).all() or values.min() < 0:
            raise ValueError("has values below 0 or not finite: save it with 8 bits")
        deep = image.mode != "F" and (";16" in image.mode or image.format == "PNG" or values.max() > 255)
        scaled = values // 256 if deep else values * 255 if image.mode == "F" and values.max() <= 1 else values
        if scaled.max() > 255:
            raise ValueError(f"has values up to {values.max():g}: save it with 8 bits")
        exif = image.getexif()
        image = Image.fromarray(np.rint(scaled).astype(np.uint8))
        image.getexif().update(exif)
    return ImageOps.exif_transpose(image)


STUDY = Preprocessing(STUDY_RESIZE, STUDY_CROP)
AS_IS = Preprocessing(None, STUDY_CROP)


class Unreadable(Exception):
    """An image cannot be decoded; the message gives its path and the reason."""


def decode(path: Path, preprocessing: Callable[[Image.Image], Any], data: Callable[[], bytes] | None = None) -> Any:
    """Decode an image file to what `preprocessing` (a Preprocessing, or any function of an image) makes of it.

    Args:
        path: of the file.
        preprocessing: gives uint8 pixels [crop, crop, 3] if it is a Preprocessing.
        data: gives the file's bytes where they are not at `path`.

    Raises:
        Unreadable: whatever a decoder raises: damaged files cause any kind of error.
    """
    try:
        content = data() if data else read_bytes(path)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if preprocessing == AS_IS and image.size == (AS_IS.crop, AS_IS.crop):
                pixels = _of_jpeg(image, content)
                return preprocessing(image) if pixels is None else pixels
            return preprocessing(image)
    except OSError as error:  # Pillow's carry no number
        raise Unreadable(f"{path}: {error.strerror or _without_address(error)}") from None
    except Exception as error:
        raise Unreadable(f"{path}: {str(error) or type(error).__name__}") from None


def _of_jpeg(image: Image.Image, data: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """Return the pixels of a JPEG as simplejpeg decodes it where Pillow is certain to give the same, else None.

    It decodes straight into an array, 1.5 times as fast as Pillow; images to be resized would have to become Pillow
    images again, which costs the time saved. Only for faultless YCbCr and grey JPEGs: Pillow reports faults.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or not _simplejpeg():
        return None
    try:
        kind = _simplejpeg().decode_jpeg_header(data)[2]
        pixels = _simplejpeg().decode_jpeg(data, "RGB", strict=True) if kind in ("YCbCr", "Gray") else None
    except (ValueError, OverflowError, MemoryError):  # damaged
        return None
    return pixels if pixels is not None and pixels.shape == (image.height, image.width, 3) else None


@functools.cache
def _simplejpeg() -> Any:
    """Return the module simplejpeg if it is installed and agrees with Pillow on this machine, else None.

    Both bring their own libjpeg-turbo; its versions and builds may round differently.
    """
    try:
        import simplejpeg
    except ImportError:
        return None
    y, x = np.mgrid[:93, :117]
    waves = np.stack([127.5 + 120 * np.sin((1 + c) * (x * x + y * y) / 900 + c) for c in range(3)], -1)
    for mode, subsampling in (("RGB", "4:2:0"), ("RGB", "4:2:2"), ("RGB", "4:4:4"), ("L", "4:4:4")):
        file = io.BytesIO()
        Image.fromarray(waves.astype(np.uint8)).convert(mode).save(file, "JPEG", quality=80, subsampling=subsampling)
        with Image.open(file) as image:
            if not np.array_equal(simplejpeg.decode_jpeg(file.getvalue(), "RGB"), np.asarray(image.convert("RGB"))):
                return None
    return simplejpeg


def _without_address(error: OSError) -> str:
    """Return Pillow's 'cannot identify image file <_io.BufferedReader name=...>' without the reader."""
    return str(error).partition(" <_io.")[0]


class Reader:
    """Reads preprocessed images of one set, through the cache of decoded images where its folder is given.

    The cache is one file of pixels for the whole listing (uint8 [N, crop, crop, 3], memory-mapped) and one of stamps:
    per image the checksum of its pixels and the size and time of their source file; no stamp, no pixels. Pixels are
    written before their stamp, so any number of processes may fill the cache at once and be killed at any moment:
    pixels that do not match their stamp are decoded again.
    """

    STAMP = np.dtype([("crc", "<u4"), ("size", "<i8"), ("time", "<i8")])

    def __init__(self, images: "ImageSet", preprocessing: Preprocessing, folder: str | Path | None = None) -> None:
        self.images, self.preprocessing = images, images.preprocessing(preprocessing)
        self.pixels: np.ndarray | None = None
        members = images.listing.members
        self.archives = ArchiveReader(members) if members else None
        if folder is not None and not images.as_is:  # ready-made images are small, and there are 7 million of them
            self._open(Path(folder))

    def _open(self, folder: Path) -> None:
        listing, crop = self.images.listing, self.preprocessing.crop
        root = os.fsencode(listing.root.resolve())
        description = {"set": self.images.name, "view": str(self.preprocessing), "root": os.fsdecode(root)}
        stem = f"{self.images.name.replace('/', '-')}-{self.preprocessing}-{hashlib.sha256(root).hexdigest()[:8]}"
        names = hashlib.sha256("\n".join(listing.files).encode()).hexdigest()
        description |= {"images": len(listing.files), "names": names}
        paths = {kind: folder / f"{stem}.{kind}" for kind in ("json", "u8", "stamps")}
        sizes = {"u8": len(listing.files) * crop * crop * 3, "stamps": len(listing.files) * self.STAMP.itemsize}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f"{stem}.lock", timeout=LOCK_SECONDS):  # several processes start at once
                if not self._sound(paths, sizes, description):
                    for path in paths.values():
                        path.unlink(missing_ok=True)
                    for kind, size in sizes.items():
                        with open(paths[kind], "ab") as file:
                            file.truncate(size)  # sparse: nothing is stored until it is written
                    write_json(paths["json"], description)
                self.files = {kind: open(paths[kind], "r+b", buffering=0) for kind in sizes}  # noqa: SIM115
            self.pixels = np.memmap(paths["u8"], np.uint8, "r", shape=(len(listing.files), crop, crop, 3))
            self.stamps = np.memmap(paths["stamps"], self.STAMP, "r")
            missing = np.count_nonzero(self.stamps["crc"][self.images.chosen] == 0) * crop * crop * 3
            free = shutil.disk_usage(folder).free
        except Timeout:
            return self._do_without(
                f"{folder / stem}.lock has been held for {LOCK_SECONDS} s; remove it if nothing runs"
            )
        except OSError as error:
            if error.errno in NO_SPACE:
                return self._do_without(error.strerror)
            raise UserError(
                f"--cache {folder}: {error}; give a folder that can be written, or leave --cache out"
            ) from None
        if missing > free:
            self._do_without(f"{folder} has {free / 1e9:,.1f} GB free, they would take {missing / 1e9:,.1f}")

    @staticmethod
    def _sound(paths: dict[str, Path], sizes: dict[str, int], description: dict[str, Any]) -> bool:
        try:
            actual = {kind: paths[kind].stat().st_size for kind in sizes}
            return actual == sizes and read_json(paths["json"], Object) == description
        except (OSError, Malformed):
            return False

    def _do_without(self, reason: str | None) -> None:
        """Stop caching: a full disk ends the cache, not the run."""
        self.pixels = None
        warnings.warn(f"decoded images are no longer kept: {reason}", stacklevel=3)

    def read(self, position: int, out: np.ndarray | None = None) -> UInt8[np.ndarray, "crop crop 3"]:
        """Return the pixels of the image at a position of the listing, written to `out` if given. Raises Unreadable."""
        if out is None:
            out = np.empty((self.preprocessing.crop, self.preprocessing.crop, 3), np.uint8)
        if self.pixels is None:
            out[...] = self.decoded(position)
            return out
        size, time = self._status(position)
        stamp = self.stamps[position]
        if stamp["crc"] and (stamp["size"], stamp["time"]) == (size, time):
            out[...] = self.pixels[position]
            if _checksum(out) == stamp["crc"]:
                return out
        out[...] = self.decoded(position)
        stamp = np.array((_checksum(out), size, time), self.STAMP)
        try:
            # pwrite reports a full disk as an error; writing through the memory map would kill the process
            _write_at(self.files["u8"], out.tobytes(), position * out.nbytes)
            _write_at(self.files["stamps"], stamp.tobytes(), position * self.STAMP.itemsize)
        except OSError as error:
            self._do_without(error.strerror)
        return out

    def decoded(self, position: int) -> UInt8[np.ndarray, "crop crop 3"]:
        """Decode and preprocess the image at a position of the listing, past the cache. Raises Unreadable."""
        data = None
        if self.archives:
            size = int(self.images.listing.sizes[position])
            data = functools.partial(self.archives.read, position, size)
        return decode(self.images.path(position), self.preprocessing, data)

    def _status(self, position: int) -> tuple[int, int]:
        """Return size and time of the image's file (for one in an archive: the time of the archive)."""
        try:
            if self.archives:
                return int(self.images.listing.sizes[position]), self.archives.time(position)
            status = self.images.path(position).stat()
        except OSError as error:
            raise Unreadable(f"{self.images.path(position)}: {error}") from None
        return status.st_size, status.st_mtime_ns


def _checksum(pixels: Any) -> int:
    return zlib.crc32(pixels) or 1  # 0 means: not stored yet


def _write_at(file: Any, data: bytes, offset: int) -> None:
    remaining = memoryview(data)
    while remaining:
        written = os.pwrite(file.fileno(), remaining, offset)
        remaining, offset = remaining[written:], offset + written
