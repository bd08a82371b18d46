from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional as F

from models.config import (
    AgentConfig,
    BackboneConfig,
    ConvConfig,
    check_paths,
    decisions,
    look_sizes,
    to_dict,
)
from tests.models.support import (
    ALL,
    agent_config,
    make_backbone,
    random_images,
    random_network,
    stream_backbone,
    tiny_backbone,
)

FORMS = ["paths", "priced", "paper"]
NARROWEST, WHOLE = (1,) * 6, (3,) * 6


@pytest.mark.parametrize("name", ALL)
def test_backbone_config_through_json_is_the_same(name):
    backbone = make_backbone(name)
    assert BackboneConfig.from_dict(json.loads(json.dumps(to_dict(backbone)))) == backbone


@pytest.mark.parametrize("form", FORMS)
def test_agent_config_through_json_is_the_same(form):
    agent = agent_config(form, tiny_backbone(), encoding=3, hidden=5)
    assert AgentConfig.from_dict(json.loads(json.dumps(to_dict(agent)))) == agent


@pytest.mark.parametrize(
    "config",
    [tiny_backbone(), tiny_backbone().layers[1], AgentConfig()],
    ids=lambda config: type(config).__name__,
)
def test_config_from_dict_of_a_missing_or_an_unknown_field_raises(config):
    kind, values = type(config), asdict(config)
    with pytest.raises(ValueError, match=f"{kind.__name__} with unknown colour"):
        kind.from_dict({**values, "colour": "red"})
    for field in values.keys() - {"sees", "views", "blend"}:
        with pytest.raises(ValueError, match=f"{kind.__name__} without {field}"):
            kind.from_dict({name: value for name, value in values.items() if name != field})


@pytest.mark.parametrize("name", ALL)
def test_sizes_are_those_that_torch_computes(name):
    network, sizes = random_network(make_backbone(name)), []
    for conv in network.convs:
        conv.register_forward_hook(lambda _conv, _inputs, y: sizes.append(y.shape[-1]))
    images = random_images(network.backbone, 1)
    network(images, [network.backbone.groups] * network.backbone.n_layers)
    last = network.backbone.layers[-1]
    end = torch.zeros(1, 1, sizes[-1], sizes[-1])
    end = end if last.pool is None else F.max_pool2d(end, *last.pool)
    assert network.backbone.sizes() == [*sizes, end.shape[-1]]


def test_in_channels_follow_the_width_before_also_at_the_end():
    backbone = tiny_backbone()
    channels = [[backbone.in_channels(i, width) for width in (1, 2, 3)] for i in range(7)]
    assert channels[0] == [3, 3, 3]
    assert channels[1:4] == [[2, 4, 6], [3, 6, 9], [3, 6, 9]]
    assert channels[6] == [4, 8, 12]


def test_out_channels_are_a_prefix_of_the_groups():
    assert [tiny_backbone().out_channels(1, width) for width in (1, 2, 3)] == [3, 6, 9]


@pytest.mark.parametrize(
    ("name", "layers"),
    [("tiny", [4]), ("stream", [2, 6]), ("mcifarnet", []), ("resnet18", [2, 4, 8, 12, 16])],
)
def test_tied_are_the_layers_that_add_their_blocks_input_as_it_is(name, layers):
    backbone = make_backbone(name)
    assert [i for i in range(backbone.n_layers) if backbone.tied(i)] == layers


def test_projection_reads_what_the_block_reads_and_writes_as_its_layer():
    backbone = tiny_backbone()
    projection = ConvConfig("p.0", "p.1", 6, 9, kernel=1, stride=2, padding=0)
    found = [backbone.projection(i) for i in range(backbone.n_layers)]
    assert found == [None, None, projection, None, None, None]


def test_decisions_layer_by_layer_are_all_but_the_first_and_the_tied():
    assert decisions(tiny_backbone(), AgentConfig("priced")) == [1, 2, 3, 5]
    assert decisions(stream_backbone(), AgentConfig("paper")) == [1, 3, 4, 5]


def test_decisions_on_the_way_are_none_where_whole_paths_are_run():
    assert decisions(tiny_backbone(), agent_config("paths", tiny_backbone())) == []


@pytest.mark.parametrize(("classes", "shares"), [(3, 2 * 6), (5, 2 * 10), (9, 2 * 14)])
def test_look_sizes_are_shares_and_logarithms_and_the_paths_end_and_penalty(classes, shares):
    backbone = replace(tiny_backbone(), linears=(7, classes))
    agent = AgentConfig("paths", hidden=5, paths=(NARROWEST, (1, 1, 1, 1, 1, 2), WHOLE))
    assert look_sizes(backbone, agent, 0) == (shares + 4 + 1, 5, 5, 2)
    assert look_sizes(backbone, agent, 1) == (shares + 8 + 1, 5, 5, 1)


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_look_sizes_of_an_agent_that_sees_the_answer_are_two_shares_two_logarithms_and_penalty(
    classes,
):
    backbone = replace(tiny_backbone(), linears=(7, classes))
    agent = AgentConfig("paths", hidden=5, paths=(NARROWEST, WHOLE), sees="answer")
    assert look_sizes(backbone, agent, 0) == (4 + 1, 5, 5, 1)


def test_agent_config_that_sees_something_unknown_raises():
    with pytest.raises(ValueError, match="agent sees 'all': choose 'answer' or 'maps'"):
        AgentConfig("paths", paths=(NARROWEST, WHOLE), sees="all")


def test_agent_config_of_unknown_views_raises():
    with pytest.raises(ValueError, match="agent views 'mirror': choose 'image' or 'both'"):
        AgentConfig("paths", paths=(NARROWEST, WHOLE), views="mirror")


@pytest.mark.parametrize("blend", [-0.1, 1.0])
def test_agent_config_of_a_blend_that_is_no_share_raises(blend):
    with pytest.raises(ValueError, match=r"agent's blend .*: it must be in \[0, 1\)"):
        AgentConfig("paths", paths=(NARROWEST, WHOLE), blend=blend)


@pytest.mark.parametrize(("views", "blend"), [("both", 1 / 3), ("image", 0)])
def test_agent_config_of_an_older_card_blends_by_its_views(views, blend):
    agent = AgentConfig("paths", paths=(NARROWEST, WHOLE), views=views, blend=0.2)
    values = to_dict(agent)
    assert AgentConfig.from_dict(values).blend == 0.2
    del values["blend"]
    assert AgentConfig.from_dict(values).blend == pytest.approx(blend)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_agent_config_mirrors_the_second_path_and_every_second_below_the_whole(count):
    paths = (NARROWEST, *[(1, 1, 1, 1, 1, 2)] * (count - 2), WHOLE)
    both, image = (AgentConfig("paths", paths=paths, views=views) for views in ("both", "image"))
    mirrored = {2: [], 3: [1], 4: [1, 2], 5: [1, 3], 6: [1, 2, 4]}[count]
    assert [number for number in range(count) if both.mirrored(number)] == mirrored
    assert not any(image.mirrored(number) for number in range(count))


def test_backbone_config_of_groups_that_do_not_divide_raises():
    with pytest.raises(ValueError, match="a has 6 channels, which 4 groups do not divide"):
        replace(tiny_backbone(), groups=4)


@pytest.mark.parametrize("index", range(1, 6))
def test_backbone_config_of_a_layer_that_does_not_read_the_one_before_raises(index):
    layers = list(tiny_backbone().layers)
    layers[index] = replace(layers[index], in_channels=15)
    before, layer = layers[index - 1 : index + 1]
    words = f"{layer.name} reads 15 channels, but {before.name} before it has {before.out_channels}"
    with pytest.raises(ValueError, match=words):
        replace(tiny_backbone(), layers=tuple(layers))


def test_backbone_config_of_unnamed_linear_layer_raises():
    with pytest.raises(ValueError, match="linears and linear_names differ"):
        replace(tiny_backbone(), linears=(3,))


@pytest.mark.parametrize("layer", [0, 1])
def test_backbone_config_of_a_block_that_nothing_precedes_raises(layer):
    layers = list(tiny_backbone().layers)
    layers[layer] = replace(layers[layer], shortcut="pad")
    with pytest.raises(ValueError, match="a residual block has two layers, after one"):
        replace(tiny_backbone(), layers=tuple(layers))


@pytest.mark.parametrize(
    ("shortcut", "layer", "change"),
    [
        ("identity", 2, {"out_channels": 32}),
        ("identity", 1, {"stride": 2}),
        ("pad", 2, {"out_channels": 8}),
        ("pad", 1, {"padding": 0}),
        ("project", 1, {"pool": (2, 2, 0)}),
    ],
)
def test_backbone_config_of_a_shortcut_that_does_not_fit_raises(shortcut, layer, change):
    layers = [ConvConfig(f"c{i}", f"n{i}", 3 if i == 0 else 16, 16) for i in range(3)]
    layers[2] = replace(layers[2], shortcut=shortcut, projection="p")
    BackboneConfig("residual", 8, tuple(layers), (3,), ("linear",), 4)
    layers[layer] = replace(layers[layer], **change)
    with pytest.raises(ValueError, match=f"the shortcut {shortcut} of c2 cannot add 16 maps of"):
        BackboneConfig("residual", 8, tuple(layers), (3,), ("linear",), 4)


@pytest.mark.parametrize("image_size", [0, 1])
def test_backbone_config_of_images_too_small_raises(image_size):
    with pytest.raises(ValueError, match=f"image_size {image_size} leaves no pixel"):
        replace(tiny_backbone(), image_size=image_size)


def test_agent_config_of_an_unknown_form_raises():
    with pytest.raises(ValueError, match="'free' is unknown: choose 'paths', 'priced' or 'paper'"):
        AgentConfig("free")


@pytest.mark.parametrize(("form", "paths"), [("paths", ()), ("priced", (NARROWEST,))])
def test_agent_config_of_paths_that_its_form_has_not_raises(form, paths):
    with pytest.raises(ValueError, match=f"form '{form}' with {len(paths)} paths"):
        AgentConfig(form, paths=paths)


def test_agent_config_of_looks_below_zero_raises():
    with pytest.raises(ValueError, match="agent with -1 looks"):
        AgentConfig("paths", paths=(NARROWEST, WHOLE), looks=-1)


@pytest.mark.parametrize(("looks", "deciding"), [(0, 3), (1, 1), (2, 2), (3, 3), (4, 3)])
def test_agent_config_decides_after_as_many_paths_as_asked_and_never_after_the_last(
    looks, deciding
):
    paths = (NARROWEST, (2,) * 6, (3, 3, 3, 3, 3, 2), WHOLE)
    assert AgentConfig("paths", paths=paths, looks=looks).deciding == deciding
    assert AgentConfig("priced", looks=looks).deciding == 0


@pytest.mark.parametrize(("form", "inputs"), [("priced", 9), ("paper", 8)])
def test_agent_config_cell_inputs_count_the_penalty_where_it_is_one(form, inputs):
    assert AgentConfig(form, encoding=8).cell_inputs == inputs


@pytest.mark.parametrize("name", ALL)
def test_check_paths_of_the_backbones_own_passes(name):
    backbone = make_backbone(name)
    check_paths(backbone, agent_config("paths", backbone))


@pytest.mark.parametrize(
    "path",
    [
        (3, 2, 3, 3, 3),
        (3, 2, 3, 3, 3, 3, 3),
        (3, 3, 0, 3, 0, 3),
        (3, 3, 4, 3, 4, 3),
        (3, 3, 2, 3, 1, 3),
    ],
    ids=["short", "long", "no group", "a group too many", "not tied"],
)
def test_check_paths_of_a_path_that_is_none_raises(path):
    with pytest.raises(ValueError, match=rf"agent path \[{path[0]}, .*\] is none of backbone tiny"):
        check_paths(tiny_backbone(), AgentConfig("paths", paths=(NARROWEST, path, WHOLE)))


@pytest.mark.parametrize(
    "paths", [((2,) * 6, WHOLE), (WHOLE, NARROWEST), (NARROWEST, NARROWEST, WHOLE)]
)
def test_check_paths_whose_first_is_not_the_only_narrowest_raises(paths):
    with pytest.raises(ValueError, match="the first of the agent's paths, and only it"):
        check_paths(tiny_backbone(), AgentConfig("paths", paths=paths))


@pytest.mark.parametrize(
    "paths",
    [(NARROWEST, (3, 3, 3, 3, 3, 2)), (NARROWEST, WHOLE, (2,) * 6), (NARROWEST, WHOLE, WHOLE)],
)
def test_check_paths_whose_last_is_not_the_only_whole_raises(paths):
    with pytest.raises(ValueError, match="the last of the agent's paths, and only it"):
        check_paths(tiny_backbone(), AgentConfig("paths", paths=paths))
