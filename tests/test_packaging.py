"""The scripts of `packaging/` that are Python."""

import runpy
from pathlib import Path

SBOM = Path(__file__).resolve().parent.parent / "packaging" / "sbom.py"


def test_a_bill_of_materials_names_the_product_once_and_the_hashes_of_its_parts():
    hashes = [{"type": "distribution", "hashes": [{"alg": "SHA-256", "content": "0" * 64}]}]
    described = {
        "metadata": {"component": {"name": "sliceprop", "bom-ref": "root", "type": "application"}},
        "components": [
            {"name": "sliceprop", "bom-ref": "sliceprop==1", "version": "1"},
            {"name": "sliceprop", "bom-ref": "again", "version": "1"},
            {"name": "Some_Package", "bom-ref": "some==2", "version": "2", "externalReferences": [{"type": "website"}]},
            {"name": "local", "bom-ref": "local==3", "version": "3"},
        ],
        "dependencies": [{"ref": "root", "dependsOn": ["some==2"]}, {"ref": "again"}, {"ref": "some==2"}],
    }
    locked = {"components": [{"name": "some-package", "externalReferences": hashes}]}
    bill = runpy.run_path(str(SBOM))["merged"](described, locked)
    assert bill["metadata"]["component"]["version"] == "1"
    assert [one["name"] for one in bill["components"]] == ["Some_Package", "local"]
    assert bill["components"][0]["externalReferences"] == [{"type": "website"}, *hashes]
    assert [one["ref"] for one in bill["dependencies"]] == ["root", "some==2"]
