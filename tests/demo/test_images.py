import numpy as np
import PIL.Image
import pytest
import skimage.io

from jaxcnn.demo import DemoError, images


@pytest.mark.parametrize(
    ("array", "pixel"),
    [
        (np.full((3, 5), 51, np.uint8), (51, 51, 51)),
        (np.full((3, 5), 65535, np.uint16), (255, 255, 255)),
        (np.full((3, 5, 3), 0x3333, np.uint16), (51, 51, 51)),
        (np.full((3, 5), True), (255, 255, 255)),
        (np.full((3, 5), 0.2), (51, 51, 51)),
        (np.full((3, 5, 1), 51, np.uint8), (51, 51, 51)),
        (np.full((3, 5, 2), (0, 51), np.uint8), (204, 204, 204)),  # a fifth of black on white
        (np.full((3, 5, 4), (255, 0, 0, 0), np.uint8), (255, 255, 255)),
        (np.full((7, 3, 5), 51, np.uint8), (51, 51, 51)),  # pages of grey
        (np.full((2, 3, 5, 3), (1, 2, 3), np.uint8), (1, 2, 3)),
        (np.full((3, 5), np.nan), (0, 0, 0)),
    ],
    ids=["grey", "grey16", "rgb16", "bool", "float", "1", "grey+alpha", "clear", "pages", "frames", "nan"],
)
def test_any_array_becomes_rgb_bytes(array, pixel):
    rgb = images.to_rgb(array)
    assert rgb.dtype == np.uint8
    assert rgb.shape == (3, 5, 3)
    np.testing.assert_array_equal(rgb, np.broadcast_to(np.asarray(pixel, np.uint8), rgb.shape))


def test_wide_integers_are_scaled_from_their_range():
    assert images.to_rgb(np.asarray([[0, 1000], [500, 250]], np.int32))[..., 0].tolist() == [[0, 255], [128, 64]]


@pytest.mark.parametrize("array", [np.zeros(4), np.zeros((0, 4)), np.zeros((2, 2), complex)])
def test_what_is_no_picture_is_refused(array):
    with pytest.raises(DemoError, match="is not a picture"):
        images.to_rgb(array)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("LA", "png"), ("RGBA", "png"), ("P", "gif"), ("1", "png"), ("CMYK", "jpg"), ("I;16", "png")],
)
def test_files_of_every_kind(tmp_path, mode, suffix):
    path = tmp_path / f"picture.{suffix}"
    PIL.Image.new(mode, (31, 17)).save(path)
    assert images.load_image(str(path)).shape == (17, 31, 3)


def test_16_bit_files_keep_their_brightness(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    PIL.Image.fromarray(ramp).save(tmp_path / "grey.png")
    skimage.io.imsave(tmp_path / "colour.tiff", np.stack([ramp] * 3, axis=-1), check_contrast=False)
    expected = np.round(ramp / 257).astype(np.uint8)
    for name in ("grey.png", "colour.tiff"):
        np.testing.assert_array_equal(images.load_image(str(tmp_path / name))[..., 1], expected)


def test_photograph_held_sideways_is_turned_upright(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    PIL.Image.new("RGB", (40, 20)).save(tmp_path / "sideways.jpg", exif=exif)
    assert images.load_image(str(tmp_path / "sideways.jpg")).shape == (40, 20, 3)


def test_only_large_pictures_are_scaled(tmp_path):
    PIL.Image.new("RGB", (1500, 7)).save(tmp_path / "wide.png")
    assert images.load_image(str(tmp_path / "wide.png"), long_side=100).shape == (1, 100, 3)  # never to nothing
    assert images.load_image(str(tmp_path / "wide.png"), long_side=2000).shape == (7, 1500, 3)


def test_bundled_pictures_by_name():
    assert images.load_image("astronaut").shape == (512, 512, 3)
    assert images.load_image("camera", long_side=64).shape == (64, 64, 3)
    assert images.load_image("motorcycle", long_side=800).shape == (500, 741, 3)


def test_bad_images_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.png").write_text("no image at all")
    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    (tmp_path / "empty.tif").write_bytes(b"")
    for name, message in {
        "text.png": "is not an image that can be read",
        "cut.png": "is not an image that can be read",
        "empty.tif": "is not an image that can be read",
        "": "is a folder, not an image",
        "missing.png": "neither a file nor a picture of scikit-image",
    }.items():
        with pytest.raises(DemoError, match=message) as raised:
            images.load_image(str(tmp_path / name))
        assert "\n" not in str(raised.value)


def test_png_of_a_map_goes_from_white_to_black(tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(images.to_png(np.asarray([[0.0, 1.0]])))
    assert np.asarray(PIL.Image.open(path).convert("RGB"))[0].tolist() == [[255, 255, 255], [0, 0, 0]]
