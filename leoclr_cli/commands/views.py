"""`leoclr views`: draw the views of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leoclr.cli import terminal as console
from leoclr.cli.commands.base.flags import settings_of, with_settings
from leoclr.cli.config.flags import Given
from leoclr.cli.config.preset_files import AUTO
from leoclr.datasets.errors import BadImage, DataError, SettingsError
from leoclr.datasets.files import did_you_mean

if TYPE_CHECKING:
    from PIL import Image

_MAX_ROWS = 64  # 64 rows of the usual size make a picture of 16,000 lines


@with_settings("--preset", "--config", "--views", "--seed", "--set")
def views(
    given: Given,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="Image files, a folder of images, or shards."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", dir_okay=False, metavar="FILE", help="PNG file to write.")
    ] = Path("views.png"),
    draws: Annotated[
        int, typer.Option(min=1, max=_MAX_ROWS, metavar="N", help="Rows per image, each with new crops and colours.")
    ] = 1,
    count: Annotated[
        int, typer.Option(min=1, max=_MAX_ROWS, metavar="N", help="Number of images from the start of shards.")
    ] = 4,
    size: Annotated[
        int, typer.Option(min=64, max=1024, metavar="PIXELS", help="Side of a view in the picture, in pixels.")
    ] = 224,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Draw images as the model sees them: the original with its crop boxes, and every view beside it.

    Views are augmented with the settings of a run and shown before normalisation; small ones are enlarged to show
    single pixels. Row N of an image shows its views in epoch N.

    \b
    Examples:
      leoclr views cat.jpg dog.jpg -o views.png
      leoclr views cat.jpg --draws 4 --views pairwise --set augmentation.crop_scale=0.08,1
      leoclr views shards/cifar10 --count 6 --preset cifar10 --seed 3
    """
    from leoclr.datasets.shards.locate import existing_data

    existing_data(images)
    if output.suffix.lower() != ".png":
        raise SettingsError(f"-o {output}: the picture is a PNG file; give a name that ends in .png")
    if given.preset == AUTO:  # which chooses by a data set
        shown = [image for image in images if not _is_picture(image)]
        given = replace(given, values={**given.values, "data.train": shown})
    settings = settings_of(given)

    from leoclr.cli.config.augmentation import augmentation_spec
    from leoclr.cli.plotting.drawing import save_picture
    from leoclr.cli.plotting.pictures import views_picture

    names, originals = _read(images, count, _MAX_ROWS // draws)
    picture = views_picture(
        originals, names, augmentation_spec(settings), settings.view_policy, settings.train.seed, draws, size
    )
    save_picture(picture, output)
    if as_json:
        console.print_json({"path": str(output), "width": picture.width, "height": picture.height, "images": names})
    else:
        console.say(f"{output}: {picture.width} x {picture.height} pixels")


def _read(sources: list[str], count: int, limit: int) -> tuple[list[str], list[Image.Image]]:
    """The images with their names; DataError where there are more than `limit`."""
    names, originals = [], []
    for source in sources:
        for name, image in _images_of(source, count):
            names.append(name)
            originals.append(image)
            if len(names) > limit:
                raise DataError(f"more than {_MAX_ROWS} rows; give fewer images, or smaller --count or --draws")
    return names, originals


def _is_picture(source: str) -> bool:
    """Whether an argument is to be a single image, and no shards or folder."""
    from leoclr.datasets.shards.index import SUFFIX

    return not Path(source).is_dir() and not source.endswith((".tar", SUFFIX))


def _images_of(source: str, count: int) -> Iterator[tuple[str, Image.Image]]:
    """An image file, or the first `count` samples of shards."""
    from leoclr.cli.image_folders import as_shards
    from leoclr.datasets.images.decode import decode_image
    from leoclr.datasets.images.file_names import IMAGE_SUFFIXES, is_image
    from leoclr.datasets.shards.locate import open_data, refuse_commands
    from leoclr.datasets.shards.reader import SampleReader

    path = Path(source)
    if not _is_picture(source):
        index = open_data(as_shards([source]))
        reader = SampleReader(index)
        for number in range(min(count, len(index))):
            yield index.key(number), reader.image(number)
        return
    if not path.is_file():
        refuse_commands(source)
        raise DataError(f"{source}: no such file{did_you_mean(Path(source))}")
    if not is_image(source):
        raise DataError(f"{source}: neither an image by its name ({', '.join(sorted(IMAGE_SUFFIXES))}) nor shards")
    try:
        yield path.name, decode_image(path.read_bytes())
    except BadImage as error:
        raise BadImage(f"{source}: {error}") from None
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}") from None
