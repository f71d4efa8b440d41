from sliceprop.server.strategy import LastingAnswer


def test_what_monai_label_knows_of_the_image_does_not_replace_the_answer():
    answer = LastingAnswer(id="a", slice=7, reason="because")
    answer.update({"slice": 1, "Modality": "MR"}, reason="no", ts=3)
    assert answer == {"id": "a", "slice": 7, "reason": "because", "Modality": "MR", "ts": 3}
