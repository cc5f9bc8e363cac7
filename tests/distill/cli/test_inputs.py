"""Situations that users meet with their own files, from end to end: what is printed, and that nothing is lost."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from distill.io.info import share_without_id
from distill.io.volume import open_labels, open_volume

Cli = Callable[..., Any]
NM = (30.0, 6.0, 6.0)
RNG = np.random.default_rng(1)
RAW = RNG.integers(1, 255, (6, 48, 40), np.uint8)
IDS = np.kron(RNG.permutation(90).reshape(3, 6, 5) + 1, np.ones((2, 8, 8), np.int64)).astype(np.uint64)
LABELS = "volumes/labels/neuron_ids"


def hdf5(
    path: Path, dataset: str, values: NDArray[Any], offset: tuple[float, ...] = (0.0, 0.0, 0.0), nm: Any = NM
) -> Path:
    with h5py.File(path, "a") as file:
        made = file.create_dataset(dataset, data=values)
        made.attrs["resolution"], made.attrs["offset"] = nm, offset
    return path


def zeros(shown: str) -> None:
    """The scores of a segmentation that equals its truth."""
    assert "split 0.0000  merge 0.0000  sum 0.0000" in shown


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
def test_ids_of_any_type(cli: Cli, tmp_path: Path, dtype: str) -> None:
    """A pyramid of ids holds no id that the finest level lacks, whatever type they were saved in."""
    path, out = hdf5(tmp_path / "a.h5", LABELS, IDS.astype(dtype)), tmp_path / "out.zarr"
    assert " 90" in cli("info", path).out.splitlines()[2] or "ids" in cli("info", path).out.splitlines()[1]
    assert cli("copy", path, f"{out}:ids", "--levels", 2).code == 0
    np.testing.assert_array_equal(open_labels(f"{out}:ids/0").read(), IDS)
    assert set(np.unique(open_labels(f"{out}:ids/1").read())) <= set(np.unique(IDS))
    assert cli("pyramid", f"{out}:ids", "--levels", 2, "--overwrite").code == 0
    assert set(np.unique(open_labels(f"{out}:ids/1").read())) <= set(np.unique(IDS))
    zeros(cli("evaluate", path, f"{out}:ids", "--worst", 0).out)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "f4", "f8"])
def test_grey_values_of_any_type(cli: Cli, tmp_path: Path, dtype: str) -> None:
    """Grey values are copied as they are, and averaged in a pyramid."""
    low = -128 if dtype[0] == "i" else 0
    values = (RAW.astype(np.int64) * (1 if np.dtype(dtype).itemsize == 1 else 7) + low).astype(dtype)
    path, out = hdf5(tmp_path / "a.h5", "volumes/raw", values), tmp_path / "out.zarr"
    said = cli("copy", path, f"{out}:raw", "--levels", 2, *(["--image"] if dtype == "i4" else []))
    assert said.code == 0, said.err
    assert "grey values" in said.out
    np.testing.assert_array_equal(open_volume(f"{out}:raw/0").read(), values)
    assert "looks like" not in said.err


def test_truth_that_is_a_crop(cli: Cli, tmp_path: Path) -> None:
    segmentation = hdf5(tmp_path / "s.h5", LABELS, IDS)
    crop = IDS[2:, 8:40, :32]
    truth = hdf5(tmp_path / "t.h5", LABELS, crop, (60.0, 48.0, 0.0))
    said = cli("evaluate", segmentation, truth, "--worst", 0)
    zeros(said.out)
    assert "35.6 % of it lies in" in said.err
    finer = hdf5(tmp_path / "f.h5", LABELS, crop.repeat(2, 1).repeat(2, 2), (60.0, 48.0, 0.0), (30.0, 3.0, 3.0))
    said = cli("evaluate", segmentation, finer, "--worst", 0)
    zeros(said.out)
    assert "voxels of 30 x 3 x 3 nm" in said.err
    inside = cli("copy", segmentation, tmp_path / "c.zarr", "--box", "2,8,0:6,40,32")
    assert inside.code == 0, inside.err
    np.testing.assert_array_equal(open_labels(tmp_path / "c.zarr").read(), crop)
    elsewhere = hdf5(tmp_path / "e.h5", LABELS, crop, (9000.0, 0.0, 0.0))
    assert cli("evaluate", segmentation, elsewhere).code == 2


def test_several_files_of_one_ome_tiff(cli: Cli, tmp_path: Path) -> None:
    """Each plane is its own section, also under another name; a plane that is lost is said and not read as zeros."""
    names = [f"s_Z{z:03d}.ome.tif" for z in range(len(RAW))]
    data = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate(names)
    )
    for z, section in enumerate(RAW):
        text = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{z}">'
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="40" SizeY="48" '
            f'SizeZ="{len(RAW)}" SizeC="1" SizeT="1" PhysicalSizeX="6" PhysicalSizeXUnit="nm" PhysicalSizeY="6" '
            f'PhysicalSizeYUnit="nm" PhysicalSizeZ="30" PhysicalSizeZUnit="nm"><Channel ID="Channel:0:0" '
            f'SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
        )
        for folder, name in (
            ("planes", f"s_Z{z:03d}.ome.tif"),
            ("renamed", f"a_{z:03d}.tif"),
            ("lost", f"s_Z{z:03d}.ome.tif"),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / folder / name, section, description=text, metadata=None)
    for folder in ("planes", "renamed"):
        volume = open_volume(tmp_path / folder)
        assert volume.resolution == NM
        np.testing.assert_array_equal(volume.read(), RAW)
    (tmp_path / "lost" / "s_Z003.ome.tif").unlink()
    assert "1 of 6 sections are missing" in cli("info", tmp_path / "lost").out
    said = cli("copy", tmp_path / "lost", tmp_path / "out.zarr")
    assert said.code == 2
    assert "s_Z002.ome.tif: 1 of 6 sections are missing" in said.err
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("codec", ["zlib", "lzw", "zstd", "packbits", "jpeg", "lzw with predictor"])
def test_tiff_by_codec(tmp_path: Path, codec: str) -> None:
    how: dict[str, Any] = {"compression": codec.split()[0], "photometric": "minisblack", "predictor": "with" in codec}
    tifffile.imwrite(tmp_path / "a.tif", RAW, **how)
    found = open_volume(tmp_path / "a.tif", resolution=NM).read().astype(int)
    assert np.abs(found - RAW).max() <= (60 if codec == "jpeg" else 0)


def test_hdf5_filters(cli: Cli, tmp_path: Path) -> None:
    """An array that needs a filter costs itself only, and the message names the package that has the filter."""
    path = hdf5(tmp_path / "a.h5", LABELS, IDS)
    with h5py.File(path, "a") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((2, 48, 40))
        plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(RAW.shape)
        group = file.require_group("volumes")
        made = h5py.h5d.create(group.id, b"raw", h5py.h5t.NATIVE_UINT8, space, dcpl=plan)
        for z in range(0, 6, 2):
            made.write_direct_chunk((z, 0, 0), b"not read here", filter_mask=0)
    said = cli("info", path)
    assert said.code == 0
    assert f"{LABELS}  6 x 48 x 40" in said.out
    assert "32015 (zstd)" in said.out
    assert "hdf5plugin" in said.out
    assert cli("copy", f"{path}:volumes/raw", tmp_path / "b.zarr", "--resolution", "30,6,6").code == 2
    with h5py.File(path, "a"):
        other = subprocess.run(
            [sys.executable, "-m", "distill", "info", path], capture_output=True, text=True, check=False
        )
    assert other.returncode == 2
    assert "is open for writing in another program" in other.stderr
    assert len(other.stderr.splitlines()) == 1


def test_names_of_sections(cli: Cli, tmp_path: Path) -> None:
    for z in range(30):
        for folder in ("suffix", "overview"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(RAW[z % 6]).save(tmp_path / folder / f"s_{z:04d}.png")
    Image.fromarray(RAW[0]).save(tmp_path / "suffix" / "s_0012_2.png")
    Image.fromarray(RAW[0, :20]).save(tmp_path / "overview" / "overview.png")
    for folder, left_out in (("suffix", "s_0012_2.png"), ("overview", "overview.png")):
        said = cli("copy", tmp_path / folder, tmp_path / f"{folder}.zarr", "--resolution", "30,6,6")
        assert said.code == 0, said.err
        assert left_out in said.err
        np.testing.assert_array_equal(open_volume(tmp_path / f"{folder}.zarr").read(), RAW[np.arange(30) % 6])


def test_arguments_that_are_swapped(cli: Cli, tmp_path: Path) -> None:
    """Grey values as labels, ids as grey values, a result as truth: said, for the numbers would be worthless."""
    path = hdf5(hdf5(tmp_path / "a.h5", LABELS, IDS), "volumes/raw", RAW)
    assert "is read as labels but looks like grey values" in cli("evaluate", f"{path}:volumes/raw", path).err
    assert "is read as labels but looks like grey values" in cli("evaluate", path, f"{path}:volumes/raw").err
    said = cli("info", f"{path}:{LABELS}", "--grey")
    assert "is read as grey values but looks like ids" in said.err
    assert "looks like" not in cli("evaluate", path, path).err
    store = tmp_path / "result.zarr"
    assert cli("copy", path, f"{store}:segmentation", "--labels").code == 0
    from distill.io.writers.store import write_group_attributes

    write_group_attributes(store, {"made_by": {"command": "stream"}})
    assert "given as ground truth" in cli("evaluate", f"{path}:{LABELS}", f"{store}:segmentation").err
    assert "given as ground truth" not in cli("evaluate", f"{store}:segmentation", f"{path}:{LABELS}").err


def test_another_resolution_is_said(cli: Cli, tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", LABELS, IDS)
    said = cli("copy", path, tmp_path / "a.zarr", "--resolution", "40,4,4")
    assert "--resolution 40,4,4 is used, the file says 30,6,6" in said.err
    assert "is used" not in cli("copy", path, tmp_path / "b.zarr", "--resolution", "30,6,6").err


def test_arrays_of_nothing_and_of_colours(cli: Cli, tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", "empty", RAW[:0])
    hdf5(path, "rgb", np.stack([np.tile(RAW, (1, 1, 1))] * 3, -1))
    said = cli("info", path)
    assert said.code == 0
    assert "0 x 48 x 40" in said.out
    assert "#axes=zyxc or #axes=czyx" in said.out
    assert "found an empty array" in cli("copy", f"{path}:empty", tmp_path / "b.zarr").err
    assert "#axes=zyxc" in cli("copy", f"{path}:rgb", tmp_path / "b.zarr").err
    chosen = cli("copy", f"{path}:rgb", tmp_path / "b.zarr", "--axes", "zyxc", "--channel", 1)
    assert chosen.code == 0, chosen.err
    np.testing.assert_array_equal(open_volume(tmp_path / "b.zarr").read(), RAW)


@pytest.mark.parametrize("name", ["x.tif", "x.h5", "x.n5", "x.png", "x.precomputed", "x.npy"])
@pytest.mark.parametrize("command", ["stream", "segment"])
def test_a_store_is_not_named_after_another_format(cli: Cli, tmp_path: Path, command: str, name: str) -> None:
    path = hdf5(tmp_path / "a.h5", "volumes/raw", RAW)
    said = cli(command, path, "--model", "ac4", "--out", tmp_path / name)
    assert said.code == 2
    assert f"{name}: found the extension of" in said.err
    assert "x.zarr" in said.err
    assert {one.name for one in tmp_path.iterdir()} == {"a.h5"}


@pytest.mark.parametrize("name", ["x.h5", "x.tif", "x.safetensors"])
def test_a_folder_is_not_named_as_a_file(cli: Cli, tmp_path: Path, name: str) -> None:
    pair = Path(__file__).parents[3] / "configs" / "phantom_cpu"
    path = hdf5(tmp_path / "a.h5", "volumes/raw", RAW)
    for words in (
        (
            "train",
            pair / "teacher.yaml",
            pair / "student.yaml",
            f"student.data.raw={path}",
            f"student.data.labels={path}",
        ),
        ("export", "ac4"),
        ("bundle", "ac4"),
    ):
        said = cli(*words, "--out", tmp_path / name)
        assert said.code == 2, words
        assert f"{name}: found the extension of" in said.err, said.err
        assert "expected a folder such as x" in said.err
    assert {one.name for one in tmp_path.iterdir()} == {"a.h5"}


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.yaml", "x.HTML", "x.pdf"])
def test_folders_are_not_named_as_other_files(cli: Cli, tmp_path: Path, name: str) -> None:
    for words in (("init", tmp_path / name), ("export", "ac4", "--out", tmp_path / name)):
        said = cli(*words)
        assert said.code == 2, words
        assert f"{name}: found the extension of" in said.err, said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("block", ["0,0,0", "17,-1,1024"])
def test_blocks_without_voxels(cli: Cli, tmp_path: Path, block: str) -> None:
    path = hdf5(tmp_path / "a.h5", "volumes/raw", RAW)
    said = cli("segment", path, "--model", "ac4", "--block", block, "--out", tmp_path / "x.zarr")
    assert said.code == 2
    assert f"--block: found {block}, expected" in said.err
    assert not (tmp_path / "x.zarr").exists()


def test_a_stream_that_reads_no_section_fails(cli: Cli, tmp_path: Path) -> None:
    """With any policy for bad sections: a result that nothing went into is none."""
    (tmp_path / "bad").mkdir()
    for z in range(3):
        Image.fromarray(RAW[z]).save(tmp_path / "bad" / f"s{z}.png")
        path = tmp_path / "bad" / f"s{z}.png"
        path.write_bytes(path.read_bytes()[:-300])
    words = ("--model", "ac4", "--resolution", "30,6,6", "--no-segment", "--backend", "eager", "--device", "cpu")
    for policy in ("skip", "bridge"):
        said = cli("stream", tmp_path / "bad", "--out", tmp_path / f"{policy}.zarr", "--on-bad", policy, *words)
        assert said.code == 2, said.out
        assert "none of 3 sections was taken (corrupt" in said.err
    Image.fromarray(RAW[1]).save(tmp_path / "bad" / "s1.png")
    said = cli("stream", tmp_path / "bad", "--out", tmp_path / "one.zarr", "--on-bad", "skip", *words)
    assert said.code == 0, said.err


def test_a_store_remembers_its_resolution(cli: Cli, tmp_path: Path) -> None:
    """Sections without a voxel size have that of the store made from them; and the summary tells what is empty."""
    (tmp_path / "raw").mkdir()
    for z in range(4):
        Image.fromarray(RAW[z]).save(tmp_path / "raw" / f"s{z}.png")
    out = tmp_path / "out.zarr"
    words = ("--model", "ac4", "--resolution", "30,6,6", "--backend", "eager", "--device", "cpu", "--out", out)
    said = cli("segment", tmp_path / "raw", *words)
    assert said.code == 0, said.err
    assert "% of the voxels belong to no object" in said.out
    for name in ("affinity", "segmentation"):
        assert open_volume(f"{out}:{name}").resolution == NM
    said = cli("section", out, "--section", 1, "--out", tmp_path / "a.png")
    assert said.code == 0, said.err
    said = cli("section", out, "--section", 1, "--raw", tmp_path / "raw", "--out", tmp_path / "b.png")
    assert said.code == 0, said.err
    assert share_without_id(f"{out}:segmentation") == np.mean(open_volume(f"{out}:segmentation").read() == 0)


@pytest.mark.parametrize("words", ["phantom OUT --shape 2,32,32", "sample OUT"])
def test_a_file_that_could_not_be_opened_is_not_written(cli: Cli, tmp_path: Path, words: str) -> None:
    """HDF5 is opened by its extension."""
    for name in ("a.tif", "a", "a.zarr"):
        said = cli(*(str(tmp_path / name) if word == "OUT" else word for word in words.split()))
        assert said.code == 2
        assert f"{name}: found extension" in said.err
    assert list(tmp_path.iterdir()) == []


WRITERS = {
    "phantom OUT --shape 2,32,32": "x.h5",
    "sample OUT": "x.h5",
    "copy RAW OUT": "x.tif",
    "copy RAW OUT:volumes/raw": "x.h5",
    "evaluate IDS IDS --list OUT": "x.csv",
    "evaluate IDS IDS --plot OUT": "x.png",
    "errors IDS IDS --raw RAW --out OUT": "x.png",
    "render IDS IDS --out OUT": "x.png",
    "gallery RAW --out OUT": "x.png",
    "pca RAW --student ac4 --raw-only-student --section 0 --out OUT": "x.png",
    "pca RAW --student ac4 --raw-only-student --section 0 --out FREE.png --movie OUT": "x.gif",
    "section RAW --section 0 --out OUT": "x.png",
    "convert RAW --out OUT": "x.safetensors",
    "report RUN --out OUT": "x.html",
    "stream RAW --model ac4 --out OUT": "x",
    "segment RAW --model ac4 --out OUT": "x",
    "export ac4 --out OUT": "x",
    "bundle ac4 --out OUT": "x",
    "copy RAW OUT --format zarr3": "x",
    "sweep AFFINITY IDS --out OUTDIR": "sweep.json",
}


@pytest.mark.parametrize("words", WRITERS)
def test_no_command_replaces_what_exists(cli: Cli, tmp_path: Path, words: str) -> None:
    """Every output that exists stays as it is without --overwrite, and what is foreign also with it."""
    path = hdf5(hdf5(tmp_path / "a.h5", LABELS, IDS), "volumes/raw", RAW)
    out = tmp_path / WRITERS[words]
    out.write_text("mine") if out.suffix else out.mkdir()
    kept = out if out.suffix else out / "mine.txt"
    if not out.suffix:
        kept.write_text("mine")
    if out.suffix == ".h5":
        hdf5_before = out.read_bytes()
        assert hdf5_before == b"mine"
    named = {"OUT": out, "RAW": f"{path}:volumes/raw", "IDS": f"{path}:{LABELS}", "FREE.png": tmp_path / "free.png"}
    named |= {"RUN": tmp_path, "AFFINITY": path, "OUTDIR": tmp_path, "OUT:volumes/raw": f"{out}:volumes/raw"}
    said = cli(*(named.get(word, word) for word in words.split()))
    assert said.code == 2, said.err
    assert str(out) in said.err
    assert len(said.err.strip().splitlines()) == 1
    if not out.suffix and "bundle" not in words:
        said = cli(*(named.get(word, word) for word in words.split()), "--overwrite")
        assert said.code == 2, said.err
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "n5", "precomputed"])
def test_files_of_others_in_a_volume_are_kept(cli: Cli, tmp_path: Path, form: str) -> None:
    path, out = hdf5(tmp_path / "a.h5", "volumes/raw", RAW), tmp_path / "out"
    words = ("copy", path, out, "--format", form, "--levels", 2)
    assert cli(*words).code == 0
    assert cli(*words, "--overwrite").code == 0
    for name in ("notes.txt", "0/notes.txt", "s0/notes.txt", "thesis/chapter.tex"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
        said = cli(*words, "--overwrite")
        assert said.code == 2
        assert f"holds {name}, which would be lost" in said.err
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    (out / ".DS_Store").write_text("of the system")
    for folder in ("0", "s0", "thesis"):
        if (out / folder).is_dir() and not any((out / folder).iterdir()):
            (out / folder).rmdir()
    assert cli(*words, "--overwrite").code == 0


def test_a_full_disk(tmp_path: Path) -> None:
    """One line and exit code 2, whatever library writes; no part of the result stays."""
    path = hdf5(tmp_path / "a.h5", "volumes/raw", RNG.integers(0, 255, (8, 200, 200), np.uint8))
    for name in ("out.h5", "out.tif", "out.zarr", "out.n5"):
        line = "import sys; from distill.cli import main; sys.argv[0] = 'distill'; main()"
        done = subprocess.run(
            [sys.executable, "-c", line, "copy", path, tmp_path / name],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        )
        assert done.returncode == 2, (name, done.stderr)
        assert done.stderr.count("distill: ") == 1, (name, done.stderr)
        assert "Traceback" not in done.stderr, (name, done.stderr)
        assert f"{name}: cannot be written: " in done.stderr.splitlines()[-1], (name, done.stderr)
        assert "File too large" in done.stderr or "the disk is full" in done.stderr, (name, done.stderr)
        assert {one.name for one in tmp_path.iterdir()} == {"a.h5"}, name


def test_the_home_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--out=~/x` is expanded by no shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    hdf5(tmp_path / "a.h5", "volumes/raw", RAW)
    assert cli("gallery", "~/a.h5", "--out=~/g.png").code == 0
    assert cli("copy", "~/a.h5", "~/b.zarr").code == 0
    assert cli("phantom", "~/c.h5", "--shape", "2,32,32").code == 0
    assert {one.name for one in tmp_path.iterdir()} >= {"a.h5", "b.zarr", "c.h5", "g.png"}
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("words", [("--version",), ("-h",), ("info", "ac4"), ("info", "a.h5"), ("stream", "--help")])
def test_short_commands_load_no_network_library(tmp_path: Path, words: tuple[str, ...]) -> None:
    """They answer in well under a second, of which loading torch alone would take more."""
    hdf5(tmp_path / "a.h5", "volumes/raw", RAW)
    code = (
        f"import sys; sys.argv = ['distill', *{words!r}]\n"
        "from distill.cli import command\n"
        "try:\n    command()\nexcept SystemExit as done:\n    assert not done.code\n"
        "print('HEAVY', sorted({'torch', 'matplotlib', 'skimage', 'sklearn', 'numba', 'dask'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_completion(tmp_path: Path) -> None:
    """The script that shells ask names the commands."""
    import os

    asked = {"_DISTILL_COMPLETE": "complete_bash", "COMP_WORDS": "distill s", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['distill']; from distill.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert {"stream", "segment", "sweep", "sample", "section"} <= set(done.stdout.split())
