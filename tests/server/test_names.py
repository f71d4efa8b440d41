import json
from threading import Thread

import pytest

from sliceprop.errors import InputError
from sliceprop.server.names import LabelNames, configured_names, names_by_value, parse_names, recorded_names


@pytest.fixture
def table(tmp_path):
    return LabelNames(tmp_path / "sub" / "names.json")


def submit(table, present, info):
    mapping, new = table.mapping(present, info)
    table.register(new)
    return mapping


@pytest.mark.parametrize(
    "text", ["a, b,c", '["a", "b", "c"]', '{"c": 30, "a": 1, "b": 7}', '["background", "a", "b", "c"]']
)
def test_configured_names_are_contiguous_in_order(text):
    assert parse_names(text) == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["a,,b", '["a", "a"]', "[1, 2]", "{]", '["background"]'])
def test_bad_configured_names_are_refused(tmp_path, text):
    with pytest.raises(InputError):
        configured_names({"labels": text}, tmp_path)


def test_conf_wins_over_the_file_of_the_studies_folder(tmp_path):
    assert configured_names({}, tmp_path) is None
    (tmp_path / "labels.json").write_text(json.dumps({"disc": 2, "core": 1}))
    assert configured_names({}, tmp_path) == ["core", "disc"]
    assert configured_names({"labels": "x"}, tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("present", "info", "expected"),
    [
        # segment numbers as values, as the OHIF panel writes them, with one segment deleted
        ({1, 3}, [{"name": "a", "idx": 1}, {"name": "b", "idx": 3}], {1: "a", 3: "b"}),
        ({1, 2}, [{"name": "b", "idx": 2}, {"name": "a", "idx": 1}], {1: "a", 2: "b"}),
        # Slicer's Submit with the first segment skipped: idx 2, 3, values 1, 2
        ({1, 2}, [{"name": "a", "idx": 2}, {"name": "b", "idx": 3}], {1: "a", 2: "b"}),
        # Slicer's Scribbles tab says id
        ({2}, [{"name": "a", "id": 1}, {"name": "b", "id": 2}], {2: "b"}),
        # names only
        ({1, 2}, [{"name": "a"}, {"name": "b"}], {1: "a", 2: "b"}),
        ({7}, [{"name": "a", "idx": "7"}], {7: "a"}),
        # Slicer's Submit after Auto Segmentation: a result beside the segment that the user made
        ({1, 2, 3}, [{"name": "a"}, {"name": "b"}, {"name": "a"}], {1: "a", 2: "b", 3: "a"}),
    ],
)
def test_values_are_named_by_idx_where_that_explains_them_else_by_position(present, info, expected):
    assert names_by_value(present, info) == expected


@pytest.mark.parametrize(
    "info", [[{"name": "a"}], [{"idx": 1}, {"name": "b"}], [{"name": "a"}, {"name": " "}], [{"name": 5}]]
)
def test_values_without_a_proper_name_are_refused(info):
    with pytest.raises(InputError):
        names_by_value({1, 2}, info)


def test_indices_follow_the_first_submission_and_never_change(table):
    assert submit(table, {1, 2}, [{"name": "disc", "idx": 1}, {"name": "core", "idx": 2}]) == {1: 1, 2: 2}
    assert submit(table, {1, 2, 3}, [{"name": "core"}, {"name": "fat"}, {"name": "disc"}]) == {1: 2, 2: 3, 3: 1}
    assert table.indices == {"disc": 1, "core": 2, "fat": 3}


def test_segments_of_one_name_are_one_label(table):
    assert submit(table, {1, 2, 3}, [{"name": "a"}, {"name": "b"}, {"name": "a"}]) == {1: 1, 2: 2, 3: 1}
    assert table.names == ["a", "b"]


def test_names_survive_a_restart(table, tmp_path):
    submit(table, {1}, [{"name": "Bündel"}])
    assert LabelNames(tmp_path / "sub" / "names.json").indices == {"Bündel": 1}


def test_a_refused_submission_leaves_no_name(table):
    table.mapping({1}, [{"name": "disc"}])
    assert table.names == []


def test_background_is_not_a_label(table):
    assert submit(table, {1, 2}, [{"name": "background"}, {"name": "disc"}]) == {2: 1}


def test_values_without_names_keep_their_value(table):
    assert submit(table, {1, 3}, None) == {1: 1, 3: 3}
    assert table.names == ["label_1", "label_2", "label_3"]
    assert submit(table, {2}, None) == {2: 2}


def test_large_values_without_names_do_not_invent_names_for_the_gap(table):
    for _ in range(2):
        assert submit(table, {4, 60_000}, None) == {4: 4, 60_000: 5}
    assert submit(table, {5}, None) == {5: 5}


def test_no_label_gets_the_index_that_means_background_in_scribbles(table, tmp_path):
    info = [{"name": f"n{idx}", "idx": idx} for idx in range(1, 301)]
    assert submit(table, {254, 255, 300}, info) == {254: 254, 255: 256, 300: 301}
    again = LabelNames(tmp_path / "sub" / "names.json")
    assert submit(again, {255}, info) == {255: 256} and again.names.count("n255") == 1
    configured = LabelNames(tmp_path / "names.json", [f"n{idx}" for idx in range(1, 301)])
    assert configured.indices["n254"] == 254 and configured.indices["n255"] == 256
    assert submit(configured, {255}, info) == {255: 256}
    with pytest.raises(InputError, match="label_255"):
        configured.mapping({255}, None)


def test_a_mask_of_0_and_255_is_one_label(table):
    for _ in range(2):
        assert submit(table, {255}, None) == {255: 1}
    submit(table, {300}, [{"name": f"n{idx}", "idx": idx} for idx in range(1, 301)])
    assert submit(table, {255}, None) == {255: 1}


def test_a_label_that_has_the_index_of_background_scribbles_keeps_it(tmp_path):
    names = [f"n{idx}" for idx in range(1, 257)]
    (tmp_path / "names.json").write_text(json.dumps(names))
    table = LabelNames(tmp_path / "names.json")
    assert table.names == names
    assert submit(table, {255}, None) == submit(table, {255}, [{"name": "n255", "idx": 255}]) == {255: 255}


def test_without_label_info_values_are_the_indices_of_the_configured_names(tmp_path):
    table = LabelNames(tmp_path / "names.json", ["a", "b"])
    assert submit(table, {2}, None) == {2: 2}
    with pytest.raises(InputError, match="label_3"):
        table.mapping({3}, None)


def test_names_that_are_not_configured_are_refused_only_if_they_were_painted(tmp_path):
    table = LabelNames(tmp_path / "names.json", ["a"])
    info = [{"name": "x", "idx": 1}, {"name": "a", "idx": 2}]
    assert submit(table, {2}, info) == {2: 1}
    with pytest.raises(InputError, match="x"):
        table.mapping({1}, info)
    assert table.names == ["a"]


def test_configured_names_in_use_keep_their_indices_in_any_order(tmp_path):
    table = LabelNames(tmp_path / "names.json", ["liver", "kidney", "spleen"])
    assert submit(table, {1}, [{"name": "kidney"}]) == {1: 2}
    again = LabelNames(tmp_path / "names.json", ["fat", "spleen", "kidney"])
    assert again.indices == {"liver": 1, "kidney": 2, "fat": 3, "spleen": 4}
    assert submit(again, {1}, [{"name": "spleen"}]) == {1: 4}
    assert LabelNames(tmp_path / "names.json").names == ["liver", "kidney", "fat", "spleen"]


def test_configured_names_that_nothing_has_can_be_replaced(tmp_path):
    submit(LabelNames(tmp_path / "names.json", ["liver", "kidny"]), {1}, [{"name": "liver"}])
    assert LabelNames(tmp_path / "names.json", ["kidney", "liver"]).indices == {"liver": 1, "kidney": 2}


def test_a_value_that_is_no_index_is_its_label_under_its_present_name(table):
    assert submit(table, {3, 300}, None) == {3: 3, 300: 4}
    table.replace(["label_1", "label_2", "label_3", "liver"], {"label_300": "liver", "label_5": "liver"})
    assert submit(table, {300}, None) == {300: 4}
    assert submit(table, {5}, None) == {5: 5}, "values that may be indices stay so"


def test_a_configured_former_name_is_the_renamed_label(table, tmp_path):
    submit(table, {1, 2}, [{"name": "draft"}, {"name": "core"}])
    table.replace(["disc", "core"], {"draft": "disc"})
    file = tmp_path / "sub" / "names.json"
    assert LabelNames(file, ["core", "draft", "fat"]).indices == {"disc": 1, "core": 2, "fat": 3}
    assert LabelNames(file, ["draft", "disc"]).indices == {"disc": 1, "core": 2, "draft": 3}


@pytest.mark.parametrize(
    ("recorded", "renamed", "expected"),
    [
        ([[{"name": "b", "idx": 2}], [{"name": "a", "idx": 1}, {"name": "old", "idx": 2}]], {}, {1: "a", 2: "b"}),
        ([[{"name": "a", "idx": 1}]], {"a": "b"}, {1: "b"}),
        # the former name became that of another label
        ([[{"name": "a", "idx": 2}], [{"name": "a", "idx": 1}]], {"a": "b"}, {1: "b", 2: "a"}),
        ([[{"name": "a", "idx": 2}], [{"name": "a", "idx": 1}]], {}, {2: "a"}),
        # names that were exchanged
        ([[{"name": "b", "idx": 1}, {"name": "a", "idx": 2}]], {"a": "b", "b": "a"}, {1: "b", 2: "a"}),
    ],
)
def test_the_newest_record_tells_what_an_index_is_called(recorded, renamed, expected):
    assert recorded_names(recorded, renamed) == expected


def test_a_lost_table_is_made_anew_from_what_is_recorded(tmp_path):
    def reopened(configured=None):
        return LabelNames(tmp_path / "names.json", configured, lambda: [[{"name": "core", "idx": 2}]])

    assert reopened().indices == {"unnamed_1": 1, "core": 2}
    assert reopened(["core", "disc", "fat"]).indices == {"disc": 1, "core": 2, "fat": 3}
    assert submit(reopened(), {1}, [{"name": "fat"}]) == {1: 3}
    assert LabelNames(tmp_path / "names.json").names == ["unnamed_1", "core", "fat"]


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ([{"name": "vessel", "idx": 2}, {"name": "liver", "idx": 1}], ["liver", "vessel", "tumour"]),
        ([{"name": "vessel", "idx": 3}], ["liver", "unnamed_2", "vessel", "tumour"]),
        # the table tells what its own numbers are called, and no name is there twice
        ([{"name": "vessel", "idx": 1}, {"name": "liver", "idx": 2}], ["liver", "unnamed_2", "tumour"]),
        ([{"name": "fat", "idx": 1}], ["liver", "tumour"]),
    ],
)
def test_numbers_beyond_the_table_belong_to_what_versions_call_them(tmp_path, recorded, expected):
    """In a backup the table may be older than the versions."""
    file = tmp_path / "names.json"
    submit(LabelNames(file), {1}, [{"name": "liver"}])
    table = LabelNames(file, None, lambda: [recorded])
    assert table.names == expected[:-1]
    assert submit(table, {1}, [{"name": "tumour"}]) == {1: len(expected)}
    assert table.names == LabelNames(file).names == expected
    table.replace(expected[:1], {})
    assert table.names == ["liver"]


def test_configured_names_keep_the_numbers_that_versions_have_beyond_the_table(tmp_path):
    file = tmp_path / "names.json"
    submit(LabelNames(file, ["a", "b", "c"]), {1}, [{"name": "a"}])
    table = LabelNames(file, ["c", "b", "a"], lambda: [[{"name": "c", "idx": 3}]])
    assert table.indices == {"a": 1, "b": 2, "c": 3}
    assert submit(table, {1}, [{"name": "b"}]) == {1: 2}
    assert LabelNames(file).names == ["a", "b", "c"]


def test_versions_that_cannot_be_read_do_not_end_the_server(tmp_path, caplog):
    def unreadable():
        raise OSError

    submit(LabelNames(tmp_path / "names.json"), {1}, [{"name": "liver"}])
    assert LabelNames(tmp_path / "names.json", None, unreadable).names == ["liver"]
    assert "not known" in caplog.text


def test_a_table_that_is_lost_while_the_server_runs_is_written_again(table, tmp_path):
    submit(table, {1}, [{"name": "liver"}])
    for file in (tmp_path / "sub").glob("names*.json"):
        file.unlink()
    assert submit(table, {1}, [{"name": "spleen"}]) == {1: 2}
    assert LabelNames(tmp_path / "sub" / "names.json").names == ["liver", "spleen"]


def test_names_that_another_process_adds_are_seen(table, tmp_path):
    other = LabelNames(tmp_path / "sub" / "names.json")
    assert table.names == other.names == []
    table.register(["a"])
    assert table.names == other.names == ["a"]
    other.register(["b"])
    assert table.names == other.names == ["a", "b"]
    table.names.append("c")
    assert table.names == ["a", "b"]


@pytest.mark.parametrize("text", ["{", "[", '{"a": 1, "b": "x"}', '{"a": [1]}', "[" * 99_999])
def test_json_that_is_no_list_of_labels_is_refused(text):
    with pytest.raises(InputError):
        parse_names(text)


def test_another_process_waits_while_labels_get_their_indices(tmp_path):
    """As one for batches, which finds label files that were put there by hand."""
    one, other, order = LabelNames(tmp_path / "names.json"), LabelNames(tmp_path / "names.json"), []
    with one.lock:
        thread = Thread(target=lambda: order.append(register(other, "spleen")))
        thread.start()
        indices, new = one.mapping([1], [{"name": "liver", "idx": 1}])
        one.register(new)
    thread.join()
    assert indices == {1: 1} and order == [{1: 2}] and one.names == ["liver", "spleen"]


def register(table, name):
    with table.lock:
        indices, new = table.mapping([1], [{"name": name, "idx": 1}])
        table.register(new)
        return indices
