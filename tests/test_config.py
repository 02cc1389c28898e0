"""Configuration: what is read, what is refused and what the refusal says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from mess.config import Config, load_config, parse_config, shipped_configs
from mess.errors import ConfigError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_both_promised_configurations_are_shipped() -> None:
    assert {"quickstart", "camvid"} <= set(shipped_configs())


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_configuration_loads_and_round_trips(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert load_config(written(tmp_path, config.to_toml())) == config


def test_the_defaults_are_those_of_the_paper() -> None:
    config = Config()
    assert config.exits.points == 6
    assert config.exits.crm == (1, 2, 4, 8)
    assert config.exits.blocks == (0, 1, 2, 3)
    assert config.exits.heads == ("fcn", "dlb")
    assert config.exits.dlb_channels == 256
    assert config.exits.max_exit_cost == 1.0
    assert config.training.stage1.learning_rate == 0.02
    assert config.training.stage1.iterations == 60_000
    assert config.training.momentum == 0.9
    assert config.training.weight_decay == 1e-4
    assert config.training.poly_power == 0.9
    assert config.training.stage2.alpha == 0.5
    assert config.data.scale == (0.5, 2.0)
    assert config.data.crop == 0.9


def test_everything_that_can_be_set_survives_toml(tmp_path: Path) -> None:
    config = parse_config(
        {
            "seed": -3,
            "data": {
                "kind": "folder",
                "root": '/da "ta"/ünï\\x',
                "size": [7, 9],
                "scale": [1, 1],
                "mean": [103.5, 116, 123],
                "std": [58, 57, 57.5],
                "channels": "bgr",
                "range": 255,
                "fit": "tile",
                "overlap": 0.25,
            },
            "backbone": {
                "name": "package.module:factory",
                "options": {"width": 0.25, "flag": True, "rates": [1, 2], "deep": {"x": "y"}},
            },
            "exits": {"points": ["layer1.0", "layer2.1"], "max_exit_share": 0.1},
            "training": {"weight_decay": 1e-12, "stage1": {"learning_rate": 1e20}},
            "memoise": {"confidence_maps": ["final"], "edges": [False]},
        }
    )
    assert load_config(written(tmp_path, config.to_toml())) == config


def test_a_root_outside_the_basic_plane_survives_toml(tmp_path: Path) -> None:
    config = parse_config({"data": {"root": "/home/me/📷"}})
    assert load_config(written(tmp_path, config.to_toml())) == config


def test_option_keys_that_need_quotes_survive_toml(tmp_path: Path) -> None:
    config = parse_config({"backbone": {"options": {"strides": {"layer 1.0": 2}}}})
    assert load_config(written(tmp_path, config.to_toml())) == config


@pytest.mark.parametrize(
    ("values", "key", "suggestion"),
    [
        ({"sed": 1}, "sed", "seed"),
        ({"data": {"sise": [1, 2]}}, "data.sise", "size"),
        ({"training": {"stage1": {"iteration": 3}}}, "training.stage1.iteration", "iterations"),
        ({"exits": {"max_exit_costs": 1}}, "exits.max_exit_costs", "max_exit_cost"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known(
    values: dict[str, object], key: str, suggestion: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_config(values)
    assert f"unknown configuration key {key!r}" in str(refusal.value)
    assert f"did you mean {suggestion!r}?" in str(refusal.value)


def test_a_key_like_nothing_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="known: backbone, data, exits, memoise, seed, training"):
        parse_config({"zzzzzz": 1})


@pytest.mark.parametrize(
    ("values", "location", "value"),
    [
        ({"training": {"batch_size": 1}}, "training.batch_size", "1"),
        ({"training": {"momentum": 1.0}}, "training.momentum", "1.0"),
        ({"training": {"stage1": {"learning_rate": 0}}}, "stage1.learning_rate", "0"),
        (
            {"training": {"stage1": {"min_learning_rate": 0.1}}},
            "training.stage1",
            "min_learning_rate 0.1 is above learning_rate 0.02",
        ),
        (
            {"training": {"stage1": {"min_learning_rate": 1e-3, "exit_learning_rate": 1e-4}}},
            "training.stage1",
            "min_learning_rate 0.001 is above exit_learning_rate 0.0001",
        ),
        ({"training": {"checkpoint_share": 0}}, "training.checkpoint_share", "0"),
        ({"training": {"stage2": {"alpha": 50}}}, "stage2.alpha", "50"),
        ({"training": {"stage1": {"exit_dropout": "off"}}}, "stage1.exit_dropout", "'off'"),
        ({"training": {"scheme": "one-stage"}}, "training.scheme", "'one-stage'"),
        ({"data": {"size": [0, 5]}}, "data.size.0", "0"),
        ({"data": {"size": [5]}}, "data.size", "[5]"),
        ({"data": {"size": [96, 16385]}}, "data.size.1", "16385"),
        ({"data": {"size": [10**400, 96]}}, "data.size.0", "less than or equal to 16384"),
        ({"exits": {"blocks": [0, 500]}}, "exits.blocks.1", "500"),
        ({"exits": {"dlb_channels": 10**30}}, "exits.dlb_channels", "less than or equal to 8192"),
        ({"exits": {"dlb_rates": [1, 2, 10**30]}}, "exits.dlb_rates", "or equal to 16384"),
        ({"data": {"holdout": 1.0}}, "data.holdout", "1.0"),
        ({"data": {"scale": [2.0, 0.5]}}, "data", "[2.0, 0.5]"),
        ({"data": {"crop": 0.0}}, "data.crop", "0.0"),
        ({"data": {"mean": [0.5]}}, "data.mean", "[0.5]: needs three means"),
        ({"data": {"std": [1, 1, 1, 1]}}, "data.std", "[1, 1, 1, 1]: needs three deviations"),
        ({"data": {"std": [1, 0, 1]}}, "data.std", "[1, 0, 1]: channels are divided by them"),
        ({"data": {"channels": "grey"}}, "data.channels", "'grey'"),
        ({"data": {"fit": "crop"}}, "data.fit", "'crop'"),
        ({"data": {"overlap": 0.51}}, "data.overlap", "0.51"),
        ({"data": {"range": 0}}, "data.range", "0: pixels are scaled to 0..range"),
        ({"exits": {"points": 0}}, "exits", "got 0"),
        ({"exits": {"crm": [0]}}, "exits.crm.0", "0"),
        ({"exits": {"blocks": [-1]}}, "exits.blocks.0", "-1"),
        ({"exits": {"max_exit_cost": -1}}, "exits.max_exit_cost", "-1"),
        ({"memoise": {"pixel_thresholds": [1.5]}}, "memoise.pixel_thresholds.0", "1.5"),
        ({"memoise": {"pixel_thresholds": []}}, "memoise", "empty"),
        ({"memoise": {"edges": [True, True]}}, "memoise", "[True, True]"),
        ({"memoise": {"confidences": ["top2"]}}, "memoise.confidences.0", "'top2'"),
        ({"seed": float("nan")}, "seed", "nan"),
        ({"data": 5}, "data", "5"),
    ],
)
def test_a_bad_value_is_refused_with_its_place_and_itself(
    values: dict[str, object], location: str, value: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_config(values)
    assert location in str(refusal.value)
    assert value in str(refusal.value)


@pytest.mark.parametrize(
    "values",
    [
        {"training": {"batch_size": 2, "momentum": 0.0, "weight_decay": 0.0}},
        {"training": {"stage2": {"alpha": 0.0}}},
        {"training": {"stage2": {"alpha": 1.0}}},
        {"data": {"size": [1, 1], "holdout": 0.0, "crop": 1.0, "scale": [1.0, 1.0]}},
        {"exits": {"points": 1}},
        {"exits": {"points": []}},
        {"memoise": {"pixel_thresholds": [0.0, 1.0]}},
    ],
)
def test_the_edges_of_the_ranges_are_allowed(values: dict[str, object]) -> None:
    assert isinstance(parse_config(values), Config)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_config({"sed": 1, "training": {"batch_size": 0}})
    assert len(str(refusal.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("seed=7", lambda c: c.seed == 7),
        (" seed = 7 ", lambda c: c.seed == 7),
        ("training.stage1.iterations=100", lambda c: c.training.stage1.iterations == 100),
        ("data.size=[10, 20]", lambda c: c.data.size == (10, 20)),
        ("data.kind=folder", lambda c: c.data.kind == "folder"),
        ('data.kind="folder"', lambda c: c.data.kind == "folder"),
        ("data.root=/a=b/c", lambda c: c.data.root == Path("/a=b/c")),
        ("exits.points=['features.3']", lambda c: c.exits.points == ("features.3",)),
        ("memoise.label_maps=false", lambda c: c.memoise.label_maps is False),
        ("backbone.options.width=0.25", lambda c: c.backbone.options.get("width") == 0.25),
    ],
)
def test_an_override_sets_a_dotted_key_to_a_toml_value(
    override: str, read: Callable[[Config], bool], tmp_path: Path
) -> None:
    defaults = written(tmp_path, "")
    assert not read(load_config(defaults))
    assert read(load_config(defaults, [override]))


def test_the_last_override_of_a_key_wins() -> None:
    assert load_config("quickstart", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["seed", "=5", ""])
def test_an_override_without_key_and_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE") as refusal:
        load_config("quickstart", [override])
    assert repr(override) in str(refusal.value)


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.kind\.x: kind holds a value"):
        load_config("quickstart", ["data.kind.x=1"])


def test_an_override_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        load_config("quickstart", ["training.batch_sizes=4"])


def test_an_unknown_shipped_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'quickstart'") as refusal:
        load_config("quickstrat")
    assert "'quickstrat'" in str(refusal.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"own\.toml is not valid TOML"):
        load_config(written(tmp_path, "seed = = 1"))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes('kind = "é"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"own\.toml is not UTF-8 text"):
        load_config(path)


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 5000])
def test_a_value_beyond_what_can_be_read_is_refused_with_its_key(
    value: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--set seed: the value is not valid TOML") as refusal:
        load_config("quickstart", [f"seed={value}"])
    assert len(str(refusal.value)) < 300
    with pytest.raises(ConfigError, match=r"own\.toml is not valid TOML"):
        load_config(written(tmp_path, f"seed = {value}"))


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().seed = 3


@pytest.mark.parametrize(
    "changed",
    [
        {"mean": [0, 0, 0]},
        {"std": [1, 1, 1]},
        {"channels": "bgr"},
        {"range": 255.0},
        {"fit": "pad"},
        {"fit": "tile", "overlap": 0.25},
    ],
)
def test_weights_depend_on_what_the_network_takes(changed: dict[str, object]) -> None:
    assert parse_config({"data": changed}).of_weights() != Config().of_weights()


def test_an_overlap_without_tiles_makes_no_difference() -> None:
    assert parse_config({"data": {"overlap": 0.25}}).of_weights() == Config().of_weights()
