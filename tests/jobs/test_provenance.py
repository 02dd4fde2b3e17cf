"""What a result says it was made with."""

from jobs.provenance import provenance, source_digest


def test_code_and_embedded_weights_tell_two_versions_apart(tmp_path):
    package = tmp_path / "package"
    (package / "assets").mkdir(parents=True)
    (package / "a.py").write_text("x = 1")
    (package / "assets/net.safetensors").write_bytes(b"1")
    first = source_digest([package])
    (package / "notes.txt").write_text("no code")
    (package / "__pycache__").mkdir()
    (package / "__pycache__/a.pyc").write_bytes(b"no code")
    assert source_digest([package]) == first
    seen = {first}
    for change in (
        lambda: (package / "a.py").write_text("x = 2"),
        lambda: (package / "assets/net.safetensors").write_bytes(b"2"),
        lambda: (package / "a.py").rename(package / "b.py"),
        lambda: (package / "c.py").touch(),
    ):
        change()
        seen.add(source_digest([package]))
    assert len(seen) == 5


def test_a_run_says_versions_and_source():
    said = provenance()
    assert said == provenance()
    assert len(said["source"]) == 16
    assert {"torch", "onedl-mmdetection"} <= set(said["versions"])
