"""No password or key leaves in what a run writes down."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config import Settings, dump_settings, load_settings
from bigtrain.config.secrets import hide_secrets, passwords_in, with_bare_urls, without_secrets
from bigtrain.rundir.json_lines import JsonLines

PASSWORD = "hunter2hunter2hunter2"
URLS = (
    f"sftp://ann:{PASSWORD}@host/runs",
    f"https://{PASSWORD}@host/data.jsonl",
    f"https://host/a?X-Amz-Signature={PASSWORD}&part=1",
    f"https://host/a?part=1&access_token={PASSWORD}",
    f"https://host/a?sig={PASSWORD}",
)


@pytest.mark.parametrize("url", URLS)
def test_what_is_secret_in_a_url_is_hidden_and_the_rest_stays(url: str) -> None:
    said = without_secrets(f"{url} cannot be read, nor can s3://bucket/key@2 or https://host/a?part=1")
    assert PASSWORD not in said and "***" in said and "host" in said
    assert said.endswith("cannot be read, nor can s3://bucket/key@2 or https://host/a?part=1")


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"])
def test_a_secret_of_the_environment_is_hidden_wherever_it_turns_up(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    monkeypatch.setenv(name, secret)
    assert without_secrets(f"refused: {secret}.") == "refused: ***."
    JsonLines(tmp_path / "events.jsonl").append({"event": "stop", "reason": f"refused {secret} at {URLS[0]}"})
    line = (tmp_path / "events.jsonl").read_text()
    assert secret not in line and PASSWORD not in line
    assert json.loads(line)["reason"] == "refused *** at sftp://ann:***@host/runs"


def test_a_path_in_a_variable_that_sounds_secret_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_KEY", "/home/ann/runs/quickstart")
    assert without_secrets("run_dir: /home/ann/runs/quickstart") == "run_dir: /home/ann/runs/quickstart"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", "/dGhpcyBpcyBhIHNlY3JldCBrZXkgb2YgNDAgY2g"),
        ("GITHUB_PAT", "11ABCDEFG0abcdefghijkl"),
        ("DB_PASS", "hunter2!"),
        ("MYSQL_PWD", "s3cret-pw"),
        ("PGPASSWORD", "s3cret-pw"),
        ("SSHPASS", "s3cret-pw"),
        ("REGISTRY_AUTH", "dXNlcjpwYXNzd29yZA=="),
        ("KEY_PASSPHRASE", "correct4horse"),
    ],
)
def test_secrets_of_every_usual_name_are_hidden(name: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, secret)
    assert without_secrets(f"refused {secret} at host") == "refused *** at host"


@pytest.mark.parametrize(
    ("name", "value"),
    [("DB_PASS", "postgres"), ("DB_PASS", "12345678"), ("PWD", "/home/ann/runs"), ("SECRET", "short")],
)
def test_ordinary_words_numbers_and_folders_are_not_hidden(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert without_secrets(f'"loss": {value}') == f'"loss": {value}'


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {PASSWORD}",
        f'{{"authorization": "Basic {PASSWORD}"}}',
        f"bearer {PASSWORD}",
        f"hf_{PASSWORD}",
        f"ghp_{PASSWORD}",
        f"https://ann:{PASSWORD}@x@host/data",
        f"https://host/a#access_token={PASSWORD}",
        f"https://host/a?key={PASSWORD}&part=1",
        f"postgresql://:{PASSWORD}@host/db",
    ],
)
def test_tokens_in_messages_of_servers_are_hidden(text: str) -> None:
    assert PASSWORD not in without_secrets(f"403: {text} is refused")


def test_a_schedule_that_no_counter_holds_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    for steps in (2**53, 10**30, 10**90):
        config.write_text(CONFIG.format(source="https://host/a", place="runs").replace("steps: 10", f"steps: {steps}"))
        with pytest.raises(BigtrainError, match=r"train\.steps"):
            load_settings(config)


@given(
    st.recursive(st.one_of(st.integers(), st.sampled_from([*URLS, "a", "x://y"])), lambda t: st.lists(t, max_size=3))
)
def test_a_tree_without_its_secrets_has_no_password(tree: object) -> None:
    hidden = hide_secrets({"a": tree})
    assert PASSWORD not in str(hidden) and hide_secrets(hidden) == hidden


CONFIG = """
run_dir: runs/x
model: {{hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 128,
  max_position_embeddings: 64}}
data:
  dir: datasets/x
  sequence_length: 64
  sources: [{{name: a, kind: jsonl, path: "{source}"}}]
train: {{steps: 10, global_batch_size: 8}}
checkpoint: {{dir: "{place}"}}
"""


def test_a_setting_with_a_password_is_refused_before_it_is_written(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(source="https://host/a.jsonl", place=URLS[0]))
    with pytest.raises(BigtrainError) as error:
        load_settings(config)
    assert "checkpoint.dir holds a password" in str(error.value) and PASSWORD not in str(error.value)
    assert list(passwords_in({"a": {"b": ["x", URLS[1]]}})) == ["a.b.1"]


def test_the_signature_of_a_signed_url_is_not_written_with_the_settings(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(source=URLS[2], place="s3://bucket/runs"))
    settings = load_settings(config)
    config.write_text(with_bare_urls(dump_settings(settings)))
    assert PASSWORD not in config.read_text()
    assert isinstance(load_settings(config), Settings)  # and it can still be read
