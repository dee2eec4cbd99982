"""Recipes: from what was typed to a trainer; what is chosen for any data; fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfumato.conditioners import Label, Text
from sfumato.core import Batch, DataInfo
from sfumato.data import Arrays, Data, Digits, Folder
from sfumato.errors import UserError
from sfumato.modelfolder import load
from sfumato.nn import DiT, UNet
from sfumato.recipes import Recipe, find_recipe, load_recipe, prepare, read_recipe, recipe, recipes, slug, trainer
from sfumato.recipes.image import batch_for, network_for
from sfumato.spec import Spec, dump_yaml
from sfumato.train import Silent, Training

TINY = {
    "data": "digits",
    "network.width": "8",
    "conditioner.width": "16",
    "conditioner.depth": "1",
    "conditioner.heads": "2",
    "batch": "16",
    "samples": "64",
    "train.pictures": "0",
    "train.evaluations": "0",
}


def image(**more: str) -> Spec[Recipe]:
    return load_recipe("image", {**TINY, **{k.replace("__", "."): v for k, v in more.items()}})


def fit(spec: Spec[Recipe], folder: Path) -> Any:
    return trainer(spec, folder, device="cpu", display=Silent()).fit()


# ---------------------------------------------------------------- what was typed


@pytest.mark.parametrize(
    ("typed", "path", "value"),
    [
        ({"size": "m"}, "network.width", 128),
        ({"minutes": "2.5"}, "train.minutes", 2.5),
        ({"lr": "1e-3"}, "train.lr", 1e-3),
        ({"batch": "32"}, "train.batch", 32),
        ({"samples": "1e4"}, "train.samples", 10000),
        ({"steps": "7"}, "sampling.steps", 7),
        ({"solver": "heun"}, "sampling.solver.type", "heun"),
        ({"solver": "heun", "sampling.solver.frame": "ve"}, "sampling.solver.frame", "ve"),
        ({"grid": "karras"}, "sampling.grid.type", "karras"),
        ({"guidance": "2"}, "sampling.guidance.scale", 2.0),
        ({"guidance": "none"}, "sampling.guidance", None),
        ({"mults": "1,1,2"}, "network.mults", [1, 1, 2]),
        ({"times": "uniform"}, "objective.times.type", "uniform"),
        ({"network": "dit", "network.depth": "3"}, "network.depth", 3),
        ({"network.depth": "3", "network": "dit"}, "network.depth", 3),  # types first, however they are written
        ({"seed": "7"}, "seed", 7),
        ({"title": "mine"}, "title", "mine"),
        ({"conditioner": "none"}, "conditioner", None),
        ({"conditioner": "label"}, "conditioner.type", "label"),
    ],
)
def test_a_setting_is_a_dial_a_path_or_a_short_name(typed: dict[str, str], path: str, value: object) -> None:
    found = dict(load_recipe("image", {"data": "digits", **typed}).leaves())
    assert found[path] == value


def test_a_scale_switches_guidance_on_again() -> None:
    off = load_recipe("image", {"data": "digits", "guidance": "none"})
    assert off.build().sampling.guidance is None
    from sfumato.recipes import override_all

    on = override_all(off, {"guidance": "4"}).build().sampling.guidance
    assert on is not None and on.scale == 4.0  # type: ignore[attr-defined]


def test_a_budget_takes_the_place_of_the_other() -> None:
    by_minutes = load_recipe("image", {"data": "digits"})
    assert by_minutes.train.minutes is not None and by_minutes.train.samples is None
    by_samples = load_recipe("image", {"data": "digits", "samples": "100"})
    assert (by_samples.train.minutes, by_samples.train.samples) == (None, 100)


@pytest.mark.parametrize(
    ("source", "typed", "said"),
    [
        ("imaeg", {}, "there is no recipe 'imaeg'; did you mean 'image'?"),
        ("image", {}, "recipe 'image' needs data="),
        (
            "image",
            {"data": "digist"},
            "data = 'digist': there is no such file, folder or built-in set; did you mean 'digits'?",
        ),
        ("image", {"size": "xxl"}, "size = 'xxl': input should be 'auto', 'xs', 's', 'm' or 'l'"),
        ("image", {"minutes": "soon"}, "minutes = 'soon': input should be a valid number"),
        ("image", {"widht": "3"}, "there is no setting 'widht'; did you mean 'width' (network.width)?"),
        ("image", {"network.widht": "3"}, "there is no setting 'network.widht'; did you mean 'network.width'?"),
        ("image", {"width": "3"}, "width= could mean network.width, conditioner.width; write the whole name"),
        ("image", {"solver": "hun"}, "sampling.solver: there is no solver 'hun'; did you mean 'heun'?"),
        ("image", {"lr": "1", "train.lr": "2"}, "lr= and train.lr= both set train.lr; give one of them"),
        ("image", {"network": "unett"}, "network: there is no network 'unett'; did you mean 'unet'?"),
        ("image", {"samples": "-5", "x": "1"}, "there is no setting 'x'"),
        ("recipe.yaml", {}, "recipe.yaml: there is no such recipe file"),
        (".", {}, "not a run folder, it has no recipe.yaml"),
    ],
)
def test_mistakes_are_named(
    source: str, typed: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_recipe(source, typed if "data" in typed or not typed else {"data": "digits", **typed})
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"train.lr": "-1"}, "train.lr = -1.0: must be above 0"),
        ({"title": " "}, "title = '' names no run"),
        ({"seed": "-1"}, "seed = -1: must lie in 0"),
        ({"steps": "0"}, "at least 1, not 0; set steps= to 1 or more"),
        ({"guidance": "-2"}, "guidance=-2.0 is not a scale"),
        (
            {"parameterization": "eps"},
            "divides by alpha, which is 0 at t = 1 of the process 'flow'; use parameterization=v",
        ),
        ({"network": "unet", "conditioner": "number"}, "the data has no numbers"),
        ({"codec": "arrays"}, None),
        ({"network": "dit", "network.heads": "5"}, "heads"),
        ({"network.attention": "7"}, "attention level 7 does not exist"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_built(typed: dict[str, str], said: str | None) -> None:
    spec = load_recipe("image", {**TINY, **typed} if "network" not in typed else {"data": "digits", **typed})
    if said is None:
        assert prepare(spec).spec.codec.cls.kind == "arrays"
        return
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        prepare(spec)


# ---------------------------------------------------------------- files

_overrides = st.fixed_dictionaries(
    {},
    optional={
        "network.width": st.integers(1, 512).map(str),
        "network.mults": st.lists(st.integers(1, 4), min_size=1, max_size=4).map(lambda v: ",".join(map(str, v))),
        "lr": st.floats(1e-6, 1.0).map(str),
        "samples": st.integers(1, 10**9).map(str),
        "solver": st.sampled_from(["heun", "ddim", "dpmpp-2m"]),
        "guidance": st.floats(0, 9).map(str) | st.just("none"),
        "times": st.sampled_from(["uniform", "logit-normal", "log-normal"]),
        "process": st.sampled_from(["flow", "vp", "ve", "cosine", "discrete-vp"]),
        "title": st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).filter(
            lambda t: t.strip() and t.lower() not in ("none", "null")
        ),
        "data": st.sampled_from(["digits", "shapes"]),
    },
)


@settings(max_examples=40, deadline=None)
@given(typed=_overrides)
def test_every_recipe_comes_back_from_its_file(typed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    spec = _base().override("seed", "3")
    from sfumato.recipes import override_all

    spec = override_all(spec, typed)
    file = tmp_path_factory.getbasetemp() / "recipe.yaml"
    file.write_text(dump_yaml(spec), encoding="utf-8")
    back = read_recipe(file)
    assert back == spec and dict(back.leaves()) == dict(spec.leaves()) and back.build() == spec.build()


def _base() -> Spec[Recipe]:
    return Spec(Recipe, title="base", data=Spec(Digits), network=Spec(UNet), conditioner=Spec(Text))


def test_a_file_may_name_its_data_by_path_and_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("title: a\ndata: digits\nnetwork: dit\n")
    assert read_recipe(file) == Spec(Recipe, title="a", data=Spec(Digits), network=Spec(DiT))
    assert load_recipe(file, {"network.depth": "2"}).network == Spec(DiT, depth=2)
    for text, said in (
        ("title: a\ndata: digits\n", r"mine.yaml: the recipe needs 'network'"),
        ("title: a\ndata: nowhere\nnetwork: dit\n", r"mine.yaml:2: data = 'nowhere': there is no such file"),
        (
            "title: a\ndata: digits\nnetwork:\n  type: dit\n  dpeth: 3\n",
            r"mine.yaml:5: network.dpeth: .*did you mean 'depth'",
        ),
        (
            "title: a\ndata: digits\nnetwork: dit\ntrain:\n  lr: fast\n",
            r"mine.yaml:5: train.lr = 'fast': input should be",
        ),
        ("- a\n", "must hold the settings of a recipe"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            read_recipe(file)


# ---------------------------------------------------------------- recipe functions


def test_a_function_joins_by_its_name_and_its_keyword_arguments_are_dials() -> None:
    @recipe("test-mine")
    def mine(*, width: int = 8, data: Spec[Data] | None = None) -> Spec[Recipe]:
        """Mine."""
        return Spec(Recipe, title="mine", data=data or Spec(Digits), network=Spec(UNet, width=width))

    assert find_recipe("test-mine") is mine and "test-mine" in recipes()
    assert load_recipe("test-mine", {"width": "16", "blocks": "1"}).network == Spec(UNet, width=16, blocks=1)
    with pytest.raises(UserError, match="the recipe name 'test-mine' is already taken"):

        @recipe("test-mine")
        def other() -> Spec[Recipe]:
            return mine()

    with pytest.raises(UserError, match="the dial 'width' must be a keyword-only argument"):

        @recipe("test-other")
        def positional(width: int = 8) -> Spec[Recipe]:
            return mine(width=width)


def test_titles_become_names_of_folders() -> None:
    assert [slug(t) for t in ("a b/c", "../x", "mine.v2", "...", "Ärger 1")] == [
        "a-b-c",
        "x",
        "mine.v2",
        "run",
        "Ärger-1",
    ]


# ---------------------------------------------------------------- any data


@pytest.mark.parametrize(
    ("shape", "mults", "batch"),
    [
        ((1, 8, 8), (1, 2), 64),
        ((1, 28, 28), (1, 2, 2), 64),
        ((3, 32, 32), (1, 2, 2), 64),
        ((3, 64, 64), (1, 2, 2, 2), 16),
        ((3, 256, 256), (1, 2, 2, 2, 2, 2), 8),
        ((2, 3), (1, 2), 64),
        ((1, 1), (1,), 64),
        ((1, 16000), (1, 2, 2, 2, 2, 2), 8),
        ((4, 16, 16, 16), (1, 2), 16),
        ((3, 7, 40), (1, 2, 2, 2), 64),
    ],
)
def test_network_and_batch_follow_the_shape(shape: tuple[int, ...], mults: tuple[int, ...], batch: int) -> None:
    assert network_for(shape, 32, 1, few=False).mults == mults
    narrow = (1, 2, *[4] * (len(mults) - 2))[: len(mults)]
    assert network_for(shape, 16, 1, few=False).mults == narrow
    assert batch_for(shape, 1 << 16) == batch
    assert batch_for((3, 32, 32), 1 << 18) == 256  # on a GPU


@pytest.mark.parametrize("size", [(11,), (9, 7), (6, 5, 4)])
@pytest.mark.parametrize("channels", [1, 5])
def test_arrays_of_any_rank_train_and_sample(tmp_path: Path, size: tuple[int, ...], channels: int) -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, (40, channels, *size)).astype(np.float32)
    np.savez(tmp_path / "field.npz", x=x, y=np.arange(40) % 3)
    spec = load_recipe("image", {"data": str(tmp_path / "field.npz"), "layout": "first"})
    assert spec.data.layout == "first"
    spec = _small(spec, samples="32")
    result = fit(spec, tmp_path / "run")
    assert result.samples == 32
    from sfumato.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    info = pipeline.model.info
    assert (info.shape, info.labels) == ((channels, *size), ("0", "1", "2"))
    made = pipeline(label=[0, 2], num_inference_steps=2).media
    assert made.shape == (2, *info.shape) and made.dtype == torch.float32


def _small(spec: Spec[Recipe], **more: str) -> Spec[Recipe]:
    from sfumato.recipes import override_all

    quick = {"network.width": "8", "batch": "8", "train.pictures": "0", "train.evaluations": "0", "network.groups": "4"}
    return override_all(spec, {**quick, **more})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures of mixed sizes and modes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        high, wide = rng.integers(20, 90, 2)
        pixels = rng.integers(0, 255, (high, wide, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if i == 7 else "RGB").save(folder / f"{i:02d}.png")
    return folder


def test_a_folder_of_twenty_pictures_of_mixed_sizes_trains_samples_and_resumes(photos: Path, tmp_path: Path) -> None:
    spec = load_recipe("image", {"data": str(photos), "channels": "3", "data.size": "16"})
    assert (spec.title, spec.conditioner, spec.data) == (
        "photos",
        None,
        Spec(Folder, path=str(photos), channels=3, size=16),
    )
    assert (spec.network.dropout, spec.network.mults) == (0.1, (1, 2))  # little data, small pictures
    spec = _small(spec, samples="16")
    assert fit(spec, tmp_path / "run").samples == 16
    more = _small(spec, samples="32")
    assert fit(more, tmp_path / "run").samples == 32
    from sfumato.pipeline import Pipeline

    assert Pipeline.from_pretrained(tmp_path / "run")(n=2, num_inference_steps=2).media.shape == (2, 3, 16, 16)


class _Numbered(Data, name="test-numbered"):
    """Numbers of two columns, one of which does not vary."""

    def __init__(self) -> None:
        self.values = np.stack([np.linspace(-2, 6, 10), np.full(10, 3.0)], 1)

    @property
    def info(self) -> DataInfo:
        return DataInfo((1, 8), "array", labels=("only",), numbers=("height", "depth"))

    def __len__(self) -> int:
        return 10

    def fetch(self, indices: Any, draws: Any = None) -> Batch:
        chosen = np.asarray(indices, np.int64)
        conditions = {"number": torch.from_numpy(self.values[chosen]).float(), "label": torch.zeros(len(chosen)).long()}
        return Batch(torch.zeros(len(chosen), 1, 8), conditions)

    def held_out_mask(self) -> Any:
        return np.arange(10) == 3

    def fingerprint(self) -> str:
        return "numbered"


def test_numbers_get_the_range_of_the_data_and_a_single_class_is_no_condition() -> None:
    chosen = load_recipe("image", {"data": "test-numbered"}).conditioner
    assert chosen is not None and chosen.cls.kind == "number"
    assert (chosen.low, chosen.high) == ((-2.0, 3.0), (6.0, 4.0))


def test_captions_get_room_for_every_wording() -> None:
    chosen = load_recipe("image", {"data": "digits"}).conditioner
    assert chosen is not None and chosen.cls is Text
    longest = max(len(c) for options in Digits().table.captions or () for c in options)
    assert longest <= chosen.length <= 2 * longest + 8


def test_labels_are_used_where_there_are_no_captions(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros((8, 9, 9), np.uint8), y_train=np.arange(8) % 4)
    spec = load_recipe("image", {"data": str(tmp_path / "mnist.npz"), "size": "s"})
    assert spec.data.cls is Arrays and spec.conditioner is not None and spec.conditioner.cls is Label
    assert spec.conditioner.width == 128 and spec.title == "mnist"


# ---------------------------------------------------------------- building


def test_building_is_a_function_of_the_recipe_and_leaves_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = prepare(image()).task.model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    b = prepare(image()).task.model.state_dict()
    c = prepare(image(seed="1")).task.model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_the_codec_is_measured_on_the_training_part() -> None:
    model = prepare(image()).task.model
    data = Digits()
    media = torch.from_numpy(data.media[~data.held_out_mask()]).double() / 127.5 - 1
    whitening: Any = model.codec.whitening
    torch.testing.assert_close(whitening.mean.double(), media.mean()[None], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(whitening.std.double(), media.std(correction=0)[None], rtol=1e-6, atol=1e-6)


def test_a_dry_run_counts_the_parameters_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepared = prepare(image())
    cost = prepared.estimate("cpu")
    assert cost.parameters == sum(p.numel() for p in prepared.task.model.parameters())
    assert cost.samples == 64 and cost.memory_bytes > 16 * cost.parameters
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- fine-tuning


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    fit(image(), folder)
    return folder


def test_init_starts_from_the_averaged_weights_and_measurements_of_a_run(first: Path) -> None:
    old = load(first).model.state_dict()
    for init in (first, first / "model"):
        new = prepare(image(init=str(init), lr="1e-4", seed="5")).task.model.state_dict()
        assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)


def test_init_takes_other_data_that_is_asked_in_the_same_way(first: Path, tmp_path: Path) -> None:
    folder = tmp_path / "marks"
    folder.mkdir()
    for i in range(8):
        Image.new("L", (8, 8), 30 * i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a grey square")
    settings_ = {**TINY, "data": str(folder), "init": str(first), "conditioner.length": "64", "network.mults": "1,2"}
    prepared = prepare(load_recipe("image", settings_))
    assert torch.equal(
        prepared.task.model.denoiser.network.state_dict()["stem.weight"],
        load(first).model.denoiser.network.state_dict()["stem.weight"],
    )


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"network.width": "16"}, r"denoiser\.network\.\S+ is \S+ and should be \S+;.* and \d+ more"),
        ({"conditioner.width": "32"}, r"belong to other settings: .*cross\.kv\.weight is 16x16 and should be 16x32"),
        (
            {"parameterization": "x0"},
            "trained to give parameterization=velocity and this recipe asks for x0; set parameterization",
        ),
        ({"codec": "arrays"}, "its codec is pixels .* give both the same codec"),
        ({"init": "nowhere"}, "nowhere: there is no such model or run"),
    ],
)
def test_init_that_does_not_fit_is_named(first: Path, typed: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        prepare(load_recipe("image", {**TINY, "init": str(first), **typed}))


def test_a_run_does_not_start_from_itself(first: Path) -> None:
    spec = image(init=str(first / "model"))
    with pytest.raises(UserError, match="a run can't start from itself; choose another name="):
        trainer(spec, first)


def test_a_run_made_with_other_settings_names_each(first: Path) -> None:
    with pytest.raises(UserError, match=r"train\.lr: 0\.\d+ -> 0\.5") as caught:
        fit(image(lr="0.5", seed="3"), first)
    assert "seed: 0 -> 3" in str(caught.value) and "--fresh" in str(caught.value)


def test_training_defaults_are_complete() -> None:
    assert Recipe("a", Spec(Digits), Spec(UNet)).train == Training()
