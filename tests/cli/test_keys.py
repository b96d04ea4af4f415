from pathlib import Path

from raylm.serve.keys import hash_key, read_keys
from raylm.store import Store


def test_create_shows_the_key_once_and_ls_never(raylm, store: Store) -> None:
    made = raylm("keys", "create", "acme", "--models", "a,b", "--requests-per-minute", "60",
                 "--expires", "30d", "--scope", "infer", "--scope", "metrics")  # fmt: skip
    assert made.code == 0
    key = made.out.strip()
    assert key.startswith("sk-raylm-") and key not in made.err
    path = store.root / "keys.json"
    assert [known.digest for known in read_keys(path)] == [hash_key(key)]
    listed = raylm("keys", "ls", "-o", "json")
    (row,) = listed.json
    assert (row["name"], row["state"], row["models"]) == ("acme", "live", ["a", "b"])
    assert (row["requests_per_minute"], row["scopes"]) == (60, ["infer", "metrics"])
    assert row["expires"] > row["created"]
    for shown in (listed.out, raylm("keys", "ls").out):
        assert key not in shown and hash_key(key).hex() not in shown


def test_json_output_has_the_key(raylm) -> None:
    made = raylm("keys", "create", "acme", "-o", "json").json
    assert made["key"].startswith("sk-raylm-") and made["name"] == "acme"
    assert "sha256" not in made


def test_revoke(raylm) -> None:
    raylm("keys", "create", "acme")
    assert "revoked acme" in raylm("keys", "revoke", "acme").err
    assert [row["state"] for row in raylm("keys", "ls", "-o", "json").json] == ["revoked"]
    again = raylm("keys", "revoke", "acme")
    assert again.code == 2 and "error[key-not-found]" in again.err


def test_the_configured_file_is_used(raylm) -> None:
    Path("raylm.yaml").write_text("name: a\nserve:\n  api_keys: mine.json\n")
    raylm("keys", "create", "acme")
    assert len(read_keys(Path("mine.json"))) == 1


def test_an_empty_list_says_how_to_make_one(raylm) -> None:
    done = raylm("keys", "ls")
    assert done.code == 0 and "raylm keys create NAME" in done.err


def test_mistakes_are_told_and_no_key_is_made(raylm, store: Store) -> None:
    for args in (
        ("A B",),
        ("a", "--scope", "admin"),
        ("a", "--expires", "soon"),
        ("a", "--weight", "0"),
        ("a", "--max-concurrency", "0"),
    ):
        done = raylm("keys", "create", *args)
        assert done.code == 2 and done.out == "", args
    assert not (store.root / "keys.json").exists()
