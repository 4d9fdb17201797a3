import pickle

import numpy as np
import pytest

from jaxcnn.demo import DemoError
from jaxcnn.demo.torch_file import read_tensors
from support import torch_files

NUMBERS = np.arange(6, dtype=np.float32)


def written(tmp_path, pickles, numbers):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"".join(pickles) + numbers)
    return path


def test_views_of_any_stride_and_offset_are_read(tmp_path):
    tensors = {
        "rows": torch_files.tensor("a", (2, 3), (3, 1)),
        "columns": torch_files.tensor("a", (3, 2), (1, 3)),
        "last": torch_files.tensor("a", (), (), offset=5),
        "steps": torch_files.tensor("b", (2,), (1,), storage=b"ctorch\nLongStorage\n"),
    }
    storages = {"a": NUMBERS, "b": np.asarray([7, 1 << 40])}
    read = read_tensors(written(tmp_path, *torch_files.assemble(torch_files.dictionary(tensors), storages)))
    np.testing.assert_array_equal(read["rows"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(read["columns"], [[0, 3], [1, 4], [2, 5]])
    assert read["last"] == 5
    assert read["steps"].tolist() == [7, 1 << 40]
    assert read["rows"].dtype == np.float32
    read["rows"][0, 0] = 9  # an array of its own
    assert read["columns"][0, 0] == 0


def test_torch_reads_and_writes_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = {"kernel": NUMBERS.reshape(1, 2, 3), "bias": NUMBERS[:2]}
    torch_files.write(tmp_path / "ours.pth", arrays)
    theirs = torch.load(tmp_path / "ours.pth", weights_only=True)
    kernel = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).permute(2, 0, 1)  # not contiguous
    torch.save({"kernel": kernel}, tmp_path / "theirs.pth", _use_new_zipfile_serialization=False)
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name].numpy(), array)
    np.testing.assert_array_equal(read_tensors(tmp_path / "theirs.pth")["kernel"], kernel.numpy())


@pytest.mark.parametrize("place", range(5), ids=["magic", "version", "machine", "tensors", "names"])
@pytest.mark.parametrize("function", ["os.system", "builtins.eval", "builtins.getattr", "torch.load", "torch._utils.x"])
def test_no_pickle_of_the_file_can_call_anything(tmp_path, place, function):
    marker = tmp_path / "was-run"
    module, _, name = function.rpartition(".")
    call = f"c{module}\n{name}\n".encode() + torch_files.sequence(torch_files.text(f"touch {marker}")) + b"R."
    pickles, numbers = torch_files.assemble(torch_files.dictionary({"w": torch_files.tensor("0", (6,), (1,))}), {})
    pickles[place] = b"\x80\x02" + call
    with pytest.raises(DemoError, match=rf"it asks for {function}, which no weights need") as raised:
        read_tensors(written(tmp_path, pickles, numbers))
    assert "\n" not in str(raised.value)
    assert not marker.exists()


def test_the_crafted_pickle_would_have_run(tmp_path):
    """The test above sees what it is meant to see."""
    marker = tmp_path / "was-run"
    pickle.loads(b"\x80\x02cos\nsystem\n" + torch_files.sequence(torch_files.text(f"touch {marker}")) + b"R.")
    assert marker.exists()


def test_setting_attributes_changes_nothing_for_the_next_file(tmp_path):
    """BUILD hands a dictionary of attributes to whatever stands before it, here the function that rebuilds a tensor."""
    build = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}N\x86(N}" + torch_files.text("__defaults__") + b"Ns\x86b."
    pickles, numbers = torch_files.assemble(build, {})
    with pytest.raises(DemoError, match="is not a file of weights"):
        read_tensors(written(tmp_path, pickles, numbers))
    torch_files.write(tmp_path / "good.pth", {"w": NUMBERS})
    np.testing.assert_array_equal(read_tensors(tmp_path / "good.pth")["w"], NUMBERS)


@pytest.mark.parametrize(
    "tensor",
    [
        torch_files.tensor("0", (7,), (1,)),
        torch_files.tensor("0", (6,), (2,)),
        torch_files.tensor("0", (2,), (-4,)),
        torch_files.tensor("0", (1,), (1,), offset=6),
        torch_files.tensor("0", (1,), (1,), offset=-1),
        torch_files.tensor("0", (1 << 30, 1 << 30, 1 << 30), (0, 0, 0)),
        torch_files.tensor("another", (6,), (1,)),
        torch_files.tensor("0", (6,), (1,), storage=torch_files.text("object")),
        torch_files.text("no tensor"),
    ],
    ids=["long", "step", "back", "after", "before", "huge", "unknown", "objects", "text"],
)
def test_tensors_that_are_none_are_refused(tmp_path, tensor):
    file = torch_files.assemble(torch_files.dictionary({"w": tensor}), {"0": NUMBERS})
    with pytest.raises(DemoError, match="is not a file of weights that can be read"):
        read_tensors(written(tmp_path, *file))


def test_broken_files_are_refused_in_one_line(tmp_path):
    good = tmp_path / "good.pth"
    torch_files.write(good, {"w": NUMBERS})
    whole = good.read_bytes()
    for cut in (0, 5, 30, 60, len(whole) - 25, len(whole) - 1):
        with pytest.raises(DemoError, match="is not a file of weights that can be read") as raised:
            read_tensors(written(tmp_path, [whole[:cut]], b""))
        assert "\n" not in str(raised.value)
    for content, message in (
        (b"PK\x03\x04", "is not a file of weights"),
        (pickle.dumps(7, 2), "it does not begin with torch's magic number"),
        (whole[:-1], "it is cut short"),
    ):
        with pytest.raises(DemoError, match=message):
            read_tensors(written(tmp_path, [content], b""))
    with pytest.raises(DemoError, match="No such file"):
        read_tensors(tmp_path / "missing.pth")
