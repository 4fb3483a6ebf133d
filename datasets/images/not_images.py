"""What a file is that no decoder takes for an image, by its first bytes, and what to do about it."""

from __future__ import annotations

_CONVERT = "convert it to JPEG or PNG"
_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a pointer of Git LFS: `git lfs pull` fetches the file"),
    (4, b"ftyphe", f"HEIF (HEIC): {_CONVERT}"),
    (4, b"ftypmif1", f"HEIF (HEIC): {_CONVERT}"),
    (4, b"ftyp", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (0, b"\0\0\0\x0cjP  ", f"JPEG 2000: {_CONVERT}"),
    (0, b"\xff\x4f\xff\x51", f"JPEG 2000: {_CONVERT}"),
    (0, b"\0\0\0\x0cJXL ", f"JPEG XL: {_CONVERT}"),
    (0, b"\xff\x0a", f"JPEG XL: {_CONVERT}"),
    (0, b"\xff\xd8", "a damaged JPEG, or of a kind that is not read (12 bits a sample, arithmetic coding)"),
    (0, b"\x89PNG", "a damaged PNG"),
    (0, b"8BPS", f"a Photoshop document: {_CONVERT}"),
    (0, b"v/1\x01", f"OpenEXR: {_CONVERT}"),
    (0, b"#?RADIANCE", f"Radiance HDR: {_CONVERT}"),
    (0, b"SIMPLE  =", f"FITS: {_CONVERT}"),
    (128, b"DICM", "DICOM: store its pixels as PNG or TIFF of 16 bits, and say their range with --levels"),
    (0, b"\x93NUMPY", "an array of NumPy: store it as PNG or TIFF"),
    (0, b"\x89HDF", "HDF5: store its images as PNG or TIFF"),
    (0, b"P7\n", f"a PAM file: {_CONVERT}"),
    (0, b"PF\n", f"a floating-point map of colours: {_CONVERT}"),
    (0, b"\0\0\1\0", f"a Windows icon: {_CONVERT}"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "PostScript, which is not run"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "compressed with gzip: uncompress it"),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def refusal(data: bytes, formats: tuple[str, ...]) -> str:
    """Why a file is no image of the known formats.

    Args:
        data: All of it.
        formats: The names of some known formats.
    """
    if not data:
        return "the file is empty"
    if data[:4] in _TIFF:
        return "a damaged TIFF, or of a kind that is not read: store 8 or 16 unsigned bits, grey or RGB"
    unknown = "not a " + ", ".join(formats) + " or other known image"
    if data.count(0) == len(data):
        return f"{unknown}, but zero bytes alone: was a copy or download interrupted?"
    if data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return f"{unknown}, but HTML or XML: was an error page saved?"
    found = next((what for place, start, what in _STARTS if data[place:].startswith(start)), None)
    return unknown if found is None else f"{unknown}, but {found}"
